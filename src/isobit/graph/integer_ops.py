"""Custom ops of a deployed network, each of which an exporter writes as one or two standard ops."""

import torch
from torch import Tensor

from isobit.core.errors import UnsupportedError
from isobit.core.fake_quantize import fake_quantize
from isobit.core.float16 import cast
from isobit.core.grid import Float16
from isobit.core.qparams import dynamic_range
from isobit.core.scheme import Scheme


@torch.library.custom_op("isobit::quantize_dequantize", mutates_args=())
def quantize_dequantize(x: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int) -> Tensor:
    """(clip(rint(x / s) + z, low, high) - z) · s per tensor: QuantizeLinear, Clip where needed, DequantizeLinear."""
    z = zero_point.to(x.dtype)
    return (x / scale).round_().add_(z).clamp_(low, high).sub_(z).mul_(scale)


@quantize_dequantize.register_fake
def _(x: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("isobit::quantize_cap_dequantize", mutates_args=())
def quantize_cap_dequantize(x: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int, caps: Tensor) -> Tensor:
    """(min(clip(rint(x / s) + z, low, high), caps) - z) · s: as `quantize_dequantize`, with a Min on the integers.

    Shapes: x (n, channels, …); caps (channels, 1, …), of the zero point's type.
    """
    z = zero_point.to(x.dtype)
    q = (x / scale).round_().add_(z).clamp_(low, high)
    return torch.minimum(q, caps.to(x.dtype)).sub_(z).mul_(scale)


@quantize_cap_dequantize.register_fake
def _(x: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int, caps: Tensor) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("isobit::quantize_to_levels", mutates_args=())
def quantize_to_levels(
    x: Tensor, quarter: Tensor, half: Tensor, offset: Tensor, table: Tensor, scale: Tensor, zero_point: Tensor
) -> Tensor:
    """(table[clip(rint((x - s / 4) / (s / 2)) + offset, 0, 255)] - z) · s: Sub, QuantizeLinear, Gather, Dequantize."""
    index = ((x - quarter) / half).round_().add_(offset.to(x.dtype)).clamp_(0, 255)
    return (table[index.to(torch.int32)].to(x.dtype) - zero_point.to(x.dtype)).mul_(scale)


@quantize_to_levels.register_fake
def _(
    x: Tensor, quarter: Tensor, half: Tensor, offset: Tensor, table: Tensor, scale: Tensor, zero_point: Tensor
) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("isobit::dynamic_quantize_dequantize", mutates_args=())
def dynamic_quantize_dequantize(x: Tensor) -> Tensor:
    """Unsigned bytes over the range of x itself, widened to hold 0: DynamicQuantizeLinear, DequantizeLinear."""
    scale, zero_point = dynamic_range(*torch.aminmax(x))
    return fake_quantize(x, scale, zero_point, Scheme(signed=False, symmetric=False))


@dynamic_quantize_dequantize.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("isobit::dequantize", mutates_args=())
def dequantize(q: Tensor, scale: Tensor, zero_point: Tensor, axis: int, block: int) -> Tensor:
    """(q - z) · s with one scale per tensor, per index of `axis`, or per `block` values of it: DequantizeLinear."""
    if block:
        scale, zero_point = (t.repeat_interleave(block, dim=axis) for t in (scale, zero_point))
    elif scale.dim():
        shape = [1] * q.dim()
        shape[axis] = -1
        scale, zero_point = scale.reshape(shape), zero_point.reshape(shape)
    return (q.to(torch.int32) - zero_point.to(torch.int32)).to(scale.dtype) * scale


@dequantize.register_fake
def _(q: Tensor, scale: Tensor, zero_point: Tensor, axis: int, block: int) -> Tensor:
    return torch.empty_like(q, dtype=scale.dtype)


@torch.library.custom_op("isobit::look_up", mutates_args=())
def look_up(table: Tensor, index: Tensor) -> Tensor:
    """table[index], of the shape of the index: Gather."""
    return table[index.to(torch.int32)]


@look_up.register_fake
def _(table: Tensor, index: Tensor) -> Tensor:
    return torch.empty_like(index, dtype=table.dtype)


@torch.library.custom_op("isobit::quantize_to_octaves", mutates_args=())
def quantize_to_octaves(x: Tensor, table: Tensor, borders: Tensor, steps: int, lowest: float) -> Tensor:
    """table[i] with borders[i] <= x < borders[i + 1].

    In a file, i is guessed as round(log2|x| · steps) - lowest from 0, and becomes one more or one less where the
    borders on both sides say so: the last bits of a logarithm decide nothing.
    """
    del steps, lowest
    return table[torch.searchsorted(borders[1:-1], x.contiguous(), right=True)]


@quantize_to_octaves.register_fake
def _(x: Tensor, table: Tensor, borders: Tensor, steps: int, lowest: float) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("isobit::cast_to_float16", mutates_args=())
def cast_to_float16(x: Tensor, subnormals: bool) -> Tensor:
    """x on the grid of float16, as float32: Clip, Cast and Cast back; without subnormals, Abs, Less and Where too."""
    y = cast(x, Float16(subnormals=subnormals))
    return y.clone() if y is x else y


@cast_to_float16.register_fake
def _(x: Tensor, subnormals: bool) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("isobit::from_float16", mutates_args=())
def from_float16(x: Tensor) -> Tensor:
    """Float16 to float32: Cast."""
    return x.float()


@from_float16.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x, dtype=torch.float32)


@torch.library.custom_op("isobit::global_average_pool", mutates_args=())
def global_average_pool(x: Tensor) -> Tensor:
    """The mean over all spatial positions, kept as one op: (n, c, h, w) → (n, c, 1, 1). GlobalAveragePool."""
    mean: Tensor = x.mean((2, 3), keepdim=True)
    return mean


@global_average_pool.register_fake
def _(x: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:2], 1, 1))


def _global_average_pool_setup(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.shape = inputs[0].shape  # type: ignore[attr-defined]


def _global_average_pool_backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> Tensor:
    shape: torch.Size = ctx.shape  # type: ignore[attr-defined]
    return (grad / (shape[2] * shape[3])).expand(shape)


global_average_pool.register_autograd(_global_average_pool_backward, setup_context=_global_average_pool_setup)


def integer_type(bits: int, *, signed: bool) -> torch.dtype:
    """The smallest type of a file that holds integers of that many bits."""
    if bits > 8:
        return torch.int16 if signed else torch.uint16
    return torch.int8 if signed else torch.uint8


def check_bits(bits: int, name: str) -> None:
    """Raise UnsupportedError for integers that a file has no type for."""
    if bits > 8 and bits != 16:
        raise UnsupportedError(f"{name} has {bits} bits: an exported file holds integers of at most 8 bits, or of 16")
