"""Layers of a deployed network: integer weights and biases, and the stored form of activation grids."""

from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isobit.core.errors import UnsupportedError
from isobit.core.granularity import PerChannel, PerGroup, PerTensor, axis_of
from isobit.core.grid import Uniform
from isobit.core.qparams import DynamicRange, QParams
from isobit.core.scheme import Scheme
from isobit.graph.integer_ops import (
    check_bits,
    dequantize,
    dynamic_quantize_dequantize,
    global_average_pool,
    look_up,
    quantize_dequantize,
)


@dataclass(frozen=True, eq=False)
class StoredGrid:
    """A grid as a file holds it: bytes q in low..high, of the zero point's type, stand for (q - zero_point) · scale."""

    scale: Tensor
    zero_point: Tensor
    low: int
    high: int


def store_activation(grid: QParams, *, non_negative: bool, name: str, signed_bytes: bool = False) -> StoredGrid:
    """The form of an activation's grid in a file: the same values, perhaps under shifted integers.

    A signed format moves up by 2^(bits-1) to unsigned bytes, since signed ones fall back to float on some engines;
    with `signed_bytes` it stays, for engines that a zero point slows down. Behind a ReLU (`non_negative`) the levels
    below zero are never used; they are dropped, so that 0 is the lowest level and an engine sees that saturation is
    the ReLU.
    """
    if not isinstance(grid.scheme.granularity, PerTensor):
        raise UnsupportedError(f"{name}: engines take one scale per activation tensor, not {grid.scheme}")
    check_bits(grid.scheme.bits, name)
    if not isinstance(grid.scheme.grid, Uniform) or grid.scheme.quant_max - grid.scheme.quant_min > 255:
        raise UnsupportedError(f"{name}: activations of {grid.scheme} have no exported form; use a uniform grid")
    zero = int(grid.zero_point)
    low, high = grid.scheme.quant_min, grid.scheme.quant_max
    stays_signed = grid.scheme.signed and signed_bytes and not non_negative
    base = zero if non_negative else min(low, zero)
    if grid.scheme.signed and not non_negative:
        base = 0 if stays_signed else min(-(1 << (grid.scheme.bits - 1)), zero)
    if high - base > 255:
        raise UnsupportedError(f"{name}: zero point {zero} and levels to {high} do not fit one byte; use fewer bits")
    return StoredGrid(
        scale=grid.scale.detach().clone().float(),
        zero_point=torch.tensor(zero - base, dtype=torch.int8 if stays_signed else torch.uint8),
        low=(low if stays_signed else max(low, base)) - base,
        high=high - base,
    )


def activation_quantizer(
    grid: QParams | DynamicRange, *, non_negative: bool, name: str, signed_bytes: bool = False
) -> nn.Module:
    """The deployed form of an activation's quantizer; raises UnsupportedError where a file cannot hold it."""
    if isinstance(grid, QParams):
        stored = store_activation(grid, non_negative=non_negative, name=name, signed_bytes=signed_bytes)
        return ActivationQuantizer(stored)
    if grid.scheme != Scheme(signed=False, symmetric=False):
        raise UnsupportedError(
            f"{name}: a file holds dynamic ranges as unsigned asymmetric bytes with one scale, not as {grid.scheme}; "
            "use such a target (onnxruntime-x86), or the quantizer `fixed`"
        )
    return DynamicActivationQuantizer()


@final
class ActivationQuantizer(nn.Module):
    """x → integers → x̂, with constants."""

    scale: Tensor
    zero_point: Tensor

    def __init__(self, grid: StoredGrid) -> None:
        super().__init__()
        self.register_buffer("scale", grid.scale)
        self.register_buffer("zero_point", grid.zero_point)
        self.low, self.high = grid.low, grid.high

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: any."""
        y: Tensor = quantize_dequantize(x, self.scale, self.zero_point, self.low, self.high)
        return y


@final
class DynamicActivationQuantizer(nn.Module):
    """x → integers → x̂, with the range of x."""

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: any."""
        y: Tensor = dynamic_quantize_dequantize(x)
        return y


@final
class IntegerWeight(nn.Module):
    """A weight as integers (int8) with scale and zero point, and its bias as int32 at scale s_x · s_w."""

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
        integers = grid.quantize(weight.detach())
        signed = grid.scheme.signed or grid.scheme.quant_min < 0
        self.axis, self.block = _layout(grid, weight)
        self.levels = grid.scheme.levels
        self.register_buffer("q", integers.to(torch.int8 if signed else torch.uint8))
        self.register_buffer("scale", grid.scale.detach().float())
        self.register_buffer("zero_point", grid.zero_point.to(self.q.dtype))
        self.float_bias = None if bias is None else bias.detach().clone()
        if bias is None or input_scale is None or self.block:
            return
        self.float_bias = None
        bias_scale = input_scale.float() * self.scale
        self.register_buffer("bias_q", integer_bias(bias, bias_scale))
        self.register_buffer("bias_scale", bias_scale)
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
    """A weight as indices into a table of float values, and a float bias: an engine computes with it in float."""

    q: Tensor
    table: Tensor
    scale: Tensor
    float_bias: Tensor

    def __init__(self, weight: Tensor, grid: QParams, bias: Tensor | None, *, name: str) -> None:
        super().__init__()
        check_bits(grid.scheme.bits, name)
        found = grid.quantize(weight.detach())
        values = grid.codebook
        if values is None:  # integer levels that no byte holds
            steps = torch.tensor(grid.scheme.levels, device=found.device)
            found, values = torch.searchsorted(steps, found), steps
        self.levels = tuple(range(len(values)))
        self.axis, self.block = _layout(grid, weight)
        self.register_buffer("q", found.to(torch.uint8))
        self.register_buffer("table", values.detach().float())
        self.register_buffer("scale", grid.scale.detach().float())
        self.register_buffer("float_bias", None if bias is None else bias.detach().clone())

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
        """The bias, as it is."""
        return self.float_bias


def deployed_weight(
    weight: Tensor, grid: QParams, bias: Tensor | None, input_scale: Tensor | None, *, name: str
) -> IntegerWeight | CodebookWeight:
    """The form of a weight in a file: integers where a byte holds its levels, else indices into a table."""
    low, high = grid.scheme.quant_min, grid.scheme.quant_max
    if grid.codebook is not None or not -128 <= low <= high <= (127 if low < 0 or grid.scheme.signed else 255):
        return CodebookWeight(weight, grid, bias, name=name)
    return IntegerWeight(weight, grid, bias, input_scale, name=name)


def integer_bias(bias: Tensor, scale: Tensor) -> Tensor:
    """round(b / (s_x s_w)), saturated to int32 (Jacob et al. 2018, section 2.4)."""
    limit = float(2**31 - 1)
    return (bias.detach().double() / scale.double()).round().clamp(-limit, limit).to(torch.int32)


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

    def __init__(self, layer: nn.modules.conv._ConvNd, weight: IntegerWeight | CodebookWeight) -> None:
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

    def __init__(self, weight: IntegerWeight | CodebookWeight) -> None:
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
