"""A graph for ONNX Runtime: logits (batch, length, vocabulary) of `input_ids` and
`attention_mask` (batch, length), for any batch and length, in float32.

Factored layers stay what they are, two products each. The graph keeps no cache of earlier
positions: it scores texts, and generates by running the whole of them for every token.
"""

from __future__ import annotations

import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from spectrim.checkpoint.load import check_causal, load
from spectrim.errors import InputError, ModelError
from spectrim.runtime.files import write_text
from spectrim.runtime.output_dir import MARKER, output_directory

GRAPH = "model.onnx"
INPUTS = ("input_ids", "attention_mask")
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_LARGEST_FILE = 2**30
"""Bytes of weights in the graph's own file; ONNX allows twice that."""
_EXAMPLES = ((2, 9), (3, 5), (1, 1))
"""Batch and length that the graph is traced with, and of others that it is tried with."""
_DIFFERENCE = 1e-3
"""Of the graph's logits, relative to the largest: far above rounding, far below a mistake."""


def export_onnx(
    checkpoint: str | Path,
    directory: str | Path,
    overwrite: bool = False,
    trust_remote_code: bool = False,
    budget: float | None = None,
) -> Path:
    """Write `model.onnx` and the tokenizer of a compressed or dense `checkpoint`.

    The graph is run and compared with the model before it is kept. budget: the size of an
    elastic checkpoint, by default its largest.

    Raises:
        InputError: A package is missing, or the directory cannot be written.
        ModelError: The model cannot be written as a graph.
    """
    _check_packages()
    check_causal(checkpoint)
    options = {"dtype": torch.float32, "trust_remote_code": trust_remote_code}
    model, tokenizer = load(checkpoint, budget=budget, **options)
    program = _Logits(model).eval()
    with output_directory(directory, overwrite) as partial:
        _write_graph(program, partial / GRAPH)
        _check_graph(program, partial / GRAPH)
        if tokenizer is not None:
            tokenizer.save_pretrained(partial)
        write_text(partial / MARKER, json.dumps(_origin(model), indent=2, sort_keys=True))
    return Path(directory)


class _Logits(nn.Module):
    """The logits alone, which are what a graph can give."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        found = self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        return found.logits

    def example(self, shape: tuple[int, int]) -> dict[str, Tensor]:
        """Any tokens, the first of the first row masked unless it is the only one."""
        generator = torch.Generator().manual_seed(0)
        count = self.model.config.get_text_config().vocab_size
        ids = torch.randint(0, count, shape, generator=generator)
        mask = torch.ones_like(ids)
        if shape[1] > 1:
            mask[0, 0] = 0
        return dict(zip(INPUTS, (ids, mask), strict=True))


@torch.no_grad()
def _write_graph(program: _Logits, path: Path) -> None:
    example = program.example(_EXAMPLES[0])
    program(**example)  # layers keep the indices that they derive, so the graph holds them
    axes = {0: "batch", 1: "length"}
    try:
        with _quiet():
            graph = torch.onnx.export(
                program,
                kwargs=example,
                dynamo=True,
                dynamic_shapes=dict.fromkeys(INPUTS, axes),
                output_names=["logits"],
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise ModelError(
            f"{type(program.model).__name__} cannot be written as a graph: {_cause(error)}; "
            "try the result of a dense export"
        ) from error
    assert graph is not None
    weights = sum(p.numel() * p.element_size() for p in program.parameters())
    graph.save(path, external_data=weights > _LARGEST_FILE)


@torch.no_grad()
def _check_graph(program: _Logits, path: Path) -> None:
    """Raise ModelError if ONNX Runtime's logits differ from the model's."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for shape in _EXAMPLES:
        example = program.example(shape)
        [logits] = session.run(None, {name: ids.numpy() for name, ids in example.items()})
        wanted, mask = program(**example), example["attention_mask"].bool()
        difference = (torch.from_numpy(logits) - wanted)[mask].abs().max()
        if not difference <= _DIFFERENCE * wanted[mask].abs().max():
            raise ModelError(
                f"the graph's logits differ by {float(difference):.3g} at batch {shape[0]}, "
                f"length {shape[1]}: {type(program.model).__name__} decides something by its "
                "input that no graph holds"
            )


def _check_packages() -> None:
    if missing := [name for name in _PACKAGES if importlib.util.find_spec(name) is None]:
        raise InputError(
            f"an ONNX export needs {', '.join(missing)}: pip install 'spectrim[onnx]'"
        )


def _origin(model: PreTrainedModel) -> dict[str, Any]:
    config = getattr(model.config, "quantization_config", None)
    return {} if config is None else config.to_dict()


def _cause(error: BaseException) -> str:
    """Return the first line of the innermost error, which names what is missing."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter: a graph is tried, and a failure raised."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
