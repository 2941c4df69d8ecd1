"""Filters for harmless log lines that torchao writes on import without a GPU.

Its libraries for GPUs do not load there, and it registers two enumerations in a way that torch
is about to forbid. All other lines of the two loggers pass, these too where a GPU is present.
"""

from __future__ import annotations

import logging
import re

_GPU_LIBRARY = re.compile(r"Failed to load \S*_C_(mxfp8|cutlass)\w*\.")
_PYTREE = "torch.utils._pytree"
_ENUMERATION = re.compile(r"is an Enum subclass and is now natively supported")


def install_log_filters() -> None:
    """Install the filters in this process; to be called before torchao is imported."""
    for name, known in (("torchao", without_gpu_libraries), (_PYTREE, without_enumerations)):
        logger = logging.getLogger(name)
        if known not in logger.filters:
            logger.addFilter(known)


def without_gpu_libraries(record: logging.LogRecord) -> bool:
    import torch  # imported already where torchao logs

    return torch.cuda.is_available() or not _GPU_LIBRARY.search(record.getMessage())


def without_enumerations(record: logging.LogRecord) -> bool:
    return not _ENUMERATION.search(record.getMessage())
