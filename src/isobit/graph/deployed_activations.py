"""Quantizers of activations in a deployed network: the stored form of their grids."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from isobit.core.errors import UnsupportedError
from isobit.core.fake_quantize import nearest_level
from isobit.core.geometric import borders, values
from isobit.core.granularity import PerTensor
from isobit.core.grid import Float16, Geometric, Uniform
from isobit.core.qparams import SMALLEST_SCALE, DynamicRange, QParams
from isobit.core.scheme import Scheme
from isobit.graph.deployed_float16 import Float16Quantizer
from isobit.graph.integer_ops import (
    check_bits,
    dynamic_quantize_dequantize,
    quantize_cap_dequantize,
    quantize_dequantize,
    quantize_to_levels,
    quantize_to_octaves,
)


@dataclass(frozen=True, eq=False)
class StoredGrid:
    """A grid as a file holds it: q in low..high, of the zero point's type, stand for (q - zero_point) · scale.

    `declared` is the grid that the quantizer declared: the same values, perhaps under other integers, and those below
    zero that a ReLU leaves unused.
    """

    scale: Tensor
    zero_point: Tensor
    low: int
    high: int
    declared: QParams


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
    if grid.scheme.bits <= 8 and grid.scheme.quant_max - grid.scheme.quant_min > 255:
        raise UnsupportedError(f"{name}: activations of {grid.scheme} do not fit one byte; use fewer bits")
    if grid.scheme.bits > 8:
        return _store_wide(grid, signed=signed_bytes)
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
        declared=grid,
    )


def _store_wide(grid: QParams, *, signed: bool) -> StoredGrid:
    """16 bits: all levels stay, since no engine's Clip takes integers of that type."""
    up = 1 << 15 if grid.scheme.signed and not signed else 0
    kind = torch.int16 if grid.scheme.signed and signed else torch.uint16
    low, high = (-(1 << 15), (1 << 15) - 1) if kind == torch.int16 else (0, (1 << 16) - 1)
    zero_point = torch.tensor(int(grid.zero_point) + up, dtype=kind)
    scale = grid.scale.detach().clone().float()
    return StoredGrid(scale=scale, zero_point=zero_point, low=low, high=high, declared=grid)


def activation_quantizer(
    grid: QParams | DynamicRange, *, non_negative: bool, name: str, signed_bytes: bool = False
) -> nn.Module:
    """The deployed form of an activation's quantizer; raises UnsupportedError where a file cannot hold it."""
    if isinstance(grid, QParams) and isinstance(grid.scheme.grid, Float16):
        return Float16Quantizer(grid.scheme.grid)
    if isinstance(grid, QParams) and isinstance(grid.scheme.grid, Geometric):
        return GeometricQuantizer(grid.scale, grid.scheme.grid, grid.scheme.bits)
    if isinstance(grid, QParams) and not isinstance(grid.scheme.grid, Uniform):
        return LevelQuantizer(grid, name=name)
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
    """x → integers → x̂, with constants; `cap` limits the integers of each channel."""

    scale: Tensor
    zero_point: Tensor
    caps: Tensor

    def __init__(self, grid: StoredGrid) -> None:
        super().__init__()
        self.register_buffer("scale", grid.scale)
        self.register_buffer("zero_point", grid.zero_point)
        self.low, self.high, self.declared = grid.low, grid.high, grid.declared

    @property
    def in_bytes(self) -> bool:
        """Whether its integers are bytes."""
        return self.zero_point.dtype.itemsize == 1

    def cap(self, limits: Tensor, dims: int) -> None:
        """Take in min(x, limits), of (channels,), which rounding commutes with; x has `dims` axes."""
        q = (limits / self.scale).round() + self.zero_point.to(limits.dtype)
        q = q.clamp(self.low, self.high).to(self.zero_point.dtype)
        self.register_buffer("caps", q.reshape(-1, *[1] * (dims - 2)))

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: any; with caps (n, channels, …)."""
        if "caps" in self._buffers:
            y: Tensor = quantize_cap_dequantize(x, self.scale, self.zero_point, self.low, self.high, self.caps)
        else:
            y = quantize_dequantize(x, self.scale, self.zero_point, self.low, self.high)
        return y


@final
class LevelQuantizer(nn.Module):
    """x → the nearest of some levels → x̂: rounded to half steps first, of which a table of bytes says the level.

    Every middle between two integer levels is a multiple of half a step. Index k of the table therefore stands for
    what lies between k and k + 1 half steps: k = rint((x - s / 4) / (s / 2)). Two levels alone, signs, are told apart
    at 0 itself, by steps so small that the bytes saturate: beside s / 4 the sign of a small x would be lost.
    """

    scale: Tensor
    zero_point: Tensor
    half_step: Tensor
    quarter_step: Tensor
    offset: Tensor
    table: Tensor

    def __init__(self, grid: QParams, *, name: str) -> None:
        super().__init__()
        levels = grid.scheme.levels
        offset, base = (128, levels[0]) if levels[0] < 0 else (0, 0)
        if grid.codebook is not None or not isinstance(grid.scheme.granularity, PerTensor):
            raise UnsupportedError(f"{name}: activations of {grid.scheme} have no exported form; use integer levels")
        if 2 * levels[-1] + offset > 255 or 2 * levels[0] + offset < 0:
            raise UnsupportedError(f"{name}: the levels of {grid.scheme} go up to {levels[-1]}: use fewer bits")
        middle_of_step = (torch.arange(256) - offset) / 2 + 0.25
        nearest = nearest_level(middle_of_step, levels)
        scale = grid.scale.detach().clone().float()
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", torch.tensor(-base, dtype=torch.uint8))
        signs = levels == (-1, 1)
        self.register_buffer("half_step", torch.full_like(scale, SMALLEST_SCALE) if signs else scale / 2)
        self.register_buffer("quarter_step", torch.zeros_like(scale) if signs else scale / 4)
        self.register_buffer("offset", torch.tensor(offset, dtype=torch.uint8))
        self.register_buffer("table", (nearest - base).to(torch.uint8))

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: any."""
        y: Tensor = quantize_to_levels(
            x, self.quarter_step, self.half_step, self.offset, self.table, self.scale, self.zero_point
        )
        return y


@final
class GeometricQuantizer(nn.Module):
    """x → the level of a geometric grid → x̂: a logarithm guesses it, the borders on both sides decide."""

    table: Tensor
    borders: Tensor

    def __init__(self, scale: Tensor, grid: Geometric, bits: int) -> None:
        super().__init__()
        self.register_buffer("table", values(scale.detach(), grid, bits))
        inner = borders(scale.detach(), grid, bits)
        ends = inner.new_tensor([-torch.inf, torch.inf])
        self.register_buffer("borders", torch.cat([ends[:1], inner, ends[1:]]))
        self.steps, self.lowest = grid.steps, float((scale.detach().double().log2() * grid.steps).round())

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: any."""
        y: Tensor = quantize_to_octaves(x, self.table, self.borders, self.steps, self.lowest)
        return y


@final
class DynamicActivationQuantizer(nn.Module):
    """x → integers → x̂, with the range of x."""

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: any."""
        y: Tensor = dynamic_quantize_dequantize(x)
        return y
