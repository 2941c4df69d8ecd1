"""One thread, here and in the processes that tests start, and the cases of the fast lane."""

from __future__ import annotations

import gc
import os
import random
from itertools import groupby

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read where triton is first imported

torch.set_num_threads(1)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark cases as slow but for the `n` that `few(n)` leaves, drawn by the test's name."""
    for name, group in groupby(items, key=lambda item: item.nodeid.partition("[")[0]):
        cases = list(group)
        if (marker := cases[0].get_closest_marker("few")) is None:
            continue
        kept = random.Random(name).sample(range(len(cases)), min(marker.args[0], len(cases)))
        for number in set(range(len(cases))).difference(kept):
            cases[number].add_marker(pytest.mark.slow)


def pytest_collection_finish() -> None:
    """Leave all that is loaded by now out of the collections of garbage to come."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    gc.unfreeze()
