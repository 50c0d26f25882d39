"""Layers of a deployed network: integer weights and biases."""

import math
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isobit.core.errors import UnsupportedError
from isobit.core.geometric import values as geometric_values
from isobit.core.granularity import PerChannel, PerGroup, PerTensor, axis_of, expand
from isobit.core.grid import Float16, Geometric, Uniform
from isobit.core.qparams import QParams
from isobit.graph.deployed_float16 import Float16Weight
from isobit.graph.integer_ops import (
    check_bits,
    dequantize,
    global_average_pool,
    integer_type,
    look_up,
)

LARGEST_BIAS = float(2**31 - 1)
"""In steps of s_x · s_w."""


@final
class IntegerWeight(nn.Module):
    """A weight as integers (int8, or int16) with scale and zero point, and its bias as int32 at scale s_x · s_w.

    A zero point of signed integers below 8 bits is taken off them, which a byte still holds; `offset` remembers it, so
    that it broadcasts against the weight, or is None. `clamped` are the outputs whose bias 32 bits do not hold.
    """

    q: Tensor
    scale: Tensor
    zero_point: Tensor
    bias_q: Tensor
    bias_scale: Tensor
    bias_zero_point: Tensor

    def __init__(
        self, weight: Tensor, grid: QParams, bias: Tensor | None, input_scale: Tensor | None, *, name: str
    ) -> None:
        super().__init__()
        check_bits(grid.scheme.bits, name)
        self.declared = grid
        integers = grid.quantize(weight.detach())
        signed = grid.scheme.signed or grid.scheme.quant_min < 0
        self.axis, self.block = _layout(grid, weight)
        self.levels = grid.scheme.levels
        zero_point, self.offset = grid.zero_point, None
        if grid.scheme.bits < 8 and signed and not self.block and bool((zero_point != 0).any()):
            self.offset = expand(zero_point, weight.dim(), grid.scheme.granularity)
            integers, zero_point = integers - self.offset, torch.zeros_like(zero_point)
        self.register_buffer("q", integers.to(integer_type(grid.scheme.bits, signed=signed)))
        self.register_buffer("scale", grid.scale.detach().float())
        self.register_buffer("zero_point", zero_point.to(self.q.dtype))
        self.float_bias = None if bias is None else bias.detach().clone()
        self.clamped: tuple[int, ...] = ()
        if bias is None or input_scale is None or self.block:
            return
        self.float_bias = None
        bias_scale = bias_step(bias, input_scale.float() * self.scale, bits=grid.scheme.bits)
        self.register_buffer("bias_q", integer_bias(bias, bias_scale))
        self.register_buffer("bias_scale", bias_scale)
        beyond = (bias.detach().double() / bias_scale.double()).abs() > LARGEST_BIAS + 0.5
        self.clamped = tuple(int(c) for c in beyond.nonzero().flatten())
        self.register_buffer("bias_zero_point", torch.zeros_like(bias_scale, dtype=torch.int32))

    def weight(self) -> Tensor:
        """The weight's values on the grid."""
        weight: Tensor = dequantize(self.q, self.scale, self.zero_point, self.axis, self.block)
        return weight

    def bias(self) -> Tensor | None:
        """The bias's values on the grid of the accumulator; in float where the input has no integer scale."""
        bias: Tensor | None = self.float_bias
        if "bias_q" in self._buffers:
            bias = dequantize(self.bias_q, self.bias_scale, self.bias_zero_point, 0, 0)
        return bias


@final
class CodebookWeight(nn.Module):
    """A weight as indices into a table of float values: an engine computes with it in float.

    The bias is integers too, of a fine scale, and always there: between a DequantizeLinear and a QuantizeLinear, ONNX
    Runtime quantizes float weights to 8 bits of its own accord, unless their bias is the result of an op.
    """

    q: Tensor
    table: Tensor
    scale: Tensor
    bias_q: Tensor
    bias_scale: Tensor
    bias_zero_point: Tensor

    def __init__(self, weight: Tensor, grid: QParams, bias: Tensor, *, name: str) -> None:
        super().__init__()
        check_bits(grid.scheme.bits, name)
        found = grid.quantize(weight.detach())
        values = grid.codebook
        scale = grid.scale.detach().float()
        if isinstance(grid.scheme.grid, Geometric):
            values, scale = geometric_values(scale, grid.scheme.grid, grid.scheme.bits), torch.ones_like(scale)
        elif values is None:  # integer levels that no byte holds
            steps = torch.tensor(grid.scheme.levels, device=found.device)
            found, values = torch.searchsorted(steps, found), steps
        self.levels = tuple(range(len(values)))
        self.axis, self.block = _layout(grid, weight)
        self.register_buffer("q", found.to(torch.uint8))
        self.register_buffer("table", values.detach().float())
        self.register_buffer("scale", scale)
        self.register_buffer("bias_scale", fine_scale(bias))
        self.register_buffer("bias_q", integer_bias(bias, self.bias_scale))
        self.register_buffer("bias_zero_point", torch.zeros_like(self.bias_q[0]))

    def weight(self) -> Tensor:
        """The weight's values."""
        scale = self.scale
        if self.block:
            scale = scale.repeat_interleave(self.block, dim=self.axis)
        elif scale.dim():
            scale = scale.reshape([-1 if i == self.axis else 1 for i in range(self.q.dim())])
        values: Tensor = look_up(self.table, self.q)
        return values * scale

    def bias(self) -> Tensor | None:
        """The bias on its fine grid."""
        bias: Tensor = dequantize(self.bias_q, self.bias_scale, self.bias_zero_point, 0, 0)
        return bias


DeployedWeight = IntegerWeight | CodebookWeight | Float16Weight


def fine_scale(bias: Tensor) -> Tensor:
    """A power of two, a scalar: whole multiples of it are float32 values and round a bias by 2^-24 of the largest."""
    largest = bias.detach().abs().max().float().clamp(min=torch.finfo(torch.float32).tiny * 2.0**24)
    return torch.exp2(largest.log2().floor() - 22)


def bias_step(bias: Tensor, step: Tensor, *, bits: int) -> Tensor:
    """The scale of an integer bias: `step`, which is s_x · s_w. Beside weights of 16 bits a bias can leave 32 bits of
    that: then the least 2^k times as much that does not."""
    if bits <= 8:
        return step
    most = float((bias.detach().double() / step.double()).abs().max()) / LARGEST_BIAS
    return step * 2.0 ** max(math.ceil(math.log2(most)), 0) if most > 1 else step


def is_integer(grid: QParams) -> bool:
    """Whether a file holds the levels of a weight's grid as integers, with which an engine may compute."""
    wide = isinstance(grid.scheme.grid, Uniform) and grid.scheme.bits == 16
    low, high = grid.scheme.quant_min, grid.scheme.quant_max
    byte = -128 <= low <= high <= (127 if low < 0 or grid.scheme.signed else 255)
    has_table = grid.codebook is not None or isinstance(grid.scheme.grid, Geometric)
    return wide or (byte and not has_table)


def deployed_weight(
    weight: Tensor, grid: QParams, bias: Tensor | None, input_scale: Tensor | None, *, channels: int, name: str
) -> DeployedWeight:
    """The form of a weight in a file: integers where a type holds its levels, else indices into a table, or floats."""
    if isinstance(grid.scheme.grid, Float16):
        return Float16Weight(weight, grid.scheme.grid, bias)
    if is_integer(grid):
        return IntegerWeight(weight, grid, bias, input_scale, name=name)
    return CodebookWeight(weight, grid, weight.new_zeros(channels) if bias is None else bias, name=name)


def integer_bias(bias: Tensor, scale: Tensor) -> Tensor:
    """round(b / (s_x s_w)), saturated to int32 (Jacob et al. 2018, section 2.4)."""
    return (bias.detach().double() / scale.double()).round().clamp(-LARGEST_BIAS, LARGEST_BIAS).to(torch.int32)


def _layout(grid: QParams, weight: Tensor) -> tuple[int, int]:
    match grid.scheme.granularity:
        case PerTensor():
            return 0, 0
        case PerChannel() as granularity:
            return axis_of(granularity, weight.dim()), 0
        case PerGroup() as granularity:
            return axis_of(granularity, weight.dim()), granularity.size


@final
class DeployedConv(nn.Module):
    """A convolution with integer weights. Its padding is that of the float layer."""

    def __init__(self, layer: nn.modules.conv._ConvNd, weight: DeployedWeight) -> None:
        super().__init__()
        if layer.padding_mode != "zeros":
            raise UnsupportedError(f"a convolution with {layer.padding_mode} padding cannot be exported")
        self.integer = weight
        self.dims = layer.weight.dim() - 2
        self.transposed = isinstance(layer, nn.modules.conv._ConvTransposeNd)
        self.stride, self.dilation, self.groups = layer.stride, layer.dilation, layer.groups
        self.padding, self.output_padding = layer.padding, layer.output_padding

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: as the float layer."""
        weight, bias = self.integer.weight(), self.integer.bias()
        if self.transposed:
            return F.conv_transpose2d(
                x,
                weight,
                bias,
                self.stride,
                self.padding,  # type: ignore[arg-type]
                self.output_padding,
                self.groups,
                self.dilation,
            )
        function = (F.conv1d, F.conv2d, F.conv3d)[self.dims - 1]
        return function(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)


@final
class DeployedLinear(nn.Module):
    """A linear layer with integer weights."""

    def __init__(self, weight: DeployedWeight) -> None:
        super().__init__()
        self.integer = weight

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: (…, in) → (…, out). Computed on two dimensions: engines have an integer Gemm with a bias for those,
        while a MatMul of three leaves its bias and its result in float."""
        flat = x if x.dim() == 2 else x.flatten(0, -2)
        y = F.linear(flat, self.integer.weight(), self.integer.bias())
        return y if x.dim() == 2 else y.reshape((*x.shape[:-1], y.shape[-1]))


@final
class GlobalAveragePool(nn.Module):
    """nn.AdaptiveAvgPool2d(1) as one op: (n, c, h, w) → (n, c, 1, 1)."""

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        y: Tensor = global_average_pool(x)
        return y
