"""torchao's weight-only quantization: int8 per row, or int4 per group on the CPU.

`torchao.quantization.quantize_` returns a tensor subclass, whose inner tensors are stored here
as plain buffers of bytes (`__tensor_flatten__`, `__tensor_unflatten__`), since safetensors
supports no subclasses. int4 uses the CPU kernel's tile order, which depends on the vector
instructions of the machine; it is stored in the options and checked on loading.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from spectrim.errors import InputError, ModelError
from spectrim.layers.quantized._base import CompressedLinear, empty_bias
from spectrim.linalg.psd import check_finite

if TYPE_CHECKING:
    from spectrim.layers.quantized._base import QuantizationProblem

REQUIRES: tuple[str, ...] = ()
REFERENCE = "torchao, https://github.com/pytorch/ao"
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_GROUPS = (32, 64, 128)


@dataclass(frozen=True)
class Options:
    """Options of torchao; group is for int4; compression fills in dtype and layout."""

    bits: Literal[8, 4] = 8
    group: int = 32
    dtype: str = "float32"
    layout: str = ""

    def __post_init__(self) -> None:
        if self.bits not in (8, 4):
            raise InputError(f"torchao expects bits=8 or bits=4, got {self.bits!r}")
        if self.group not in _GROUPS:
            raise InputError(f"torchao expects a group of {_GROUPS}, got {self.group!r}")
        if self.dtype not in _DTYPES or not isinstance(self.layout, str):
            raise InputError(
                f"torchao expects a dtype of {sorted(_DTYPES)}, got {self.dtype!r}"
            )


class TorchaoLinear(CompressedLinear):
    """One buffer of bytes (uint8) per inner tensor, under its torchao name."""

    OPTIONS = Options

    @classmethod
    def empty(cls, shape: tuple[int, int], bias: bool, options: Options) -> TorchaoLinear:
        if options.layout != _layout(options.bits):
            raise InputError(
                f"int4 weights are laid out for {options.layout}, the kernel here expects "
                f"{_layout(options.bits)}; compress the original model on this machine"
            )
        sizes = _structure(shape, options).sizes
        buffers = {name: torch.empty(s, dtype=torch.uint8) for name, s in sizes.items()}
        return cls(shape, empty_bias(shape[0], bias), options, buffers)

    @classmethod
    def cost(cls, shape: tuple[int, int], options: Options, itemsize: int) -> int:
        rows, columns = shape
        if options.bits == 8:
            return rows * (columns + 5)  # per row a scale in float32 and a zero of one byte
        scale = _DTYPES[options.dtype].itemsize
        return rows * columns // 2 + 2 * scale * rows * (columns // options.group)

    def product(self, x: Tensor) -> Tensor:
        dtype = _DTYPES[self.options.dtype]
        bias = None if self.bias is None else self.bias.to(dtype)
        return functional.linear(x.to(dtype), self._tensor(), bias).to(x.dtype)

    def matrix(self, dtype: torch.dtype) -> Tensor:
        """Return the product with the identity: the matrix that the kernel multiplies with."""
        unit = torch.eye(
            self.in_features, dtype=_DTYPES[self.options.dtype], device=self._device
        )
        return functional.linear(unit, self._tensor()).T.to(dtype)

    @property
    def _device(self) -> torch.device:
        return next(self.buffers()).device

    def _tensor(self) -> Tensor:
        shape = (self.out_features, self.in_features)
        known = _structure(shape, self.options)
        inner = {name: getattr(self, name).view(d) for name, d in known.dtypes.items()}
        return known.kind.__tensor_unflatten__(inner, known.context, shape, (shape[1], 1))


def compress(problem: QuantizationProblem, options: Options) -> TorchaoLinear:
    """Quantize a weight by torchao.

    Raises InputError if torchao is missing, ModelError for an unsupported shape, NumericalError
    for a weight that is not finite.
    """
    check_finite(problem.weight, f"the weight of {problem.name}")
    weight = problem.weight.detach()
    if weight.dtype not in _DTYPES.values():
        weight = weight.float()
    dtype = str(weight.dtype).removeprefix("torch.")
    options = replace(options, dtype=dtype, layout=_layout(options.bits))
    tensors, _ = _flat(_quantize(weight, options, problem.name))
    buffers = {name: _bytes(tensor) for name, tensor in tensors.items()}
    shape = (weight.shape[0], weight.shape[1])
    return TorchaoLinear(shape, problem.bias, options, buffers)


def _layout(bits: int) -> str:
    return torch.backends.cpu.get_cpu_capability() if bits == 4 else ""


@dataclass(frozen=True)
class _Structure:
    """A tensor subclass without its values; sizes are in bytes."""

    kind: Any
    sizes: dict[str, torch.Size]
    dtypes: dict[str, torch.dtype]
    context: Any


@cache
def _structure(shape: tuple[int, int], options: Options) -> _Structure:
    """Return the structure, found by quantizing zeros."""
    with torch.device("cpu"):
        zeros = torch.zeros(shape, dtype=_DTYPES[options.dtype])
        quantized = _quantize(zeros, options, "a layer")
    tensors, context = _flat(quantized)
    sizes = {name: _bytes(tensor).shape for name, tensor in tensors.items()}
    dtypes = {name: tensor.dtype for name, tensor in tensors.items()}
    return _Structure(type(quantized), sizes, dtypes, context)


def _quantize(weight: Tensor, options: Options, name: str) -> Tensor:
    quantize, config = _library(options)
    module = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    module.weight = nn.Parameter(weight.clone(), requires_grad=False)
    try:
        quantize(module, config)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        raise _refused(name, weight, options, str(error).splitlines()[0]) from error
    if not hasattr(module.weight, "__tensor_flatten__"):
        raise _refused(name, weight, options, "inputs are no multiple of the group")
    return module.weight.detach()


def _refused(name: str, weight: Tensor, options: Options, why: str) -> ModelError:
    return ModelError(
        f"torchao cannot compress {name} {tuple(weight.shape)} to {options.bits} bits: {why}; "
        "leave it out with --exclude, or use --quantizer rtn"
    )


def _library(options: Options) -> tuple[Any, Any]:
    """Return `quantize_` and its configuration. Raises InputError if they are missing."""
    try:
        from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig
        from torchao.quantization import Int8WeightOnlyConfig, quantize_
    except ImportError as error:
        raise InputError(
            f"torchao for int{options.bits} is not installed ({error}): "
            "pip install 'spectrim[torchao]'"
        ) from error
    if options.bits == 8:
        return quantize_, Int8WeightOnlyConfig(set_inductor_config=False)
    return quantize_, PrototypeInt4WeightOnlyConfig(options.group, set_inductor_config=False)


def _flat(tensor: Any) -> tuple[dict[str, Tensor], Any]:
    names, context = tensor.__tensor_flatten__()
    return {name: getattr(tensor, name) for name in names}, context


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().view(torch.uint8)


LAYER = TorchaoLinear
