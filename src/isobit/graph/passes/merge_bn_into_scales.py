"""The end of training with batch norm kept: its factor becomes the weight's scale per channel, integers stay."""

from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor, fx, nn

from isobit.core.granularity import PerChannel, PerTensor, expand
from isobit.core.grid import Uniform
from isobit.core.qparams import QParams
from isobit.core.scheme import Scheme
from isobit.graph.passes.batch_norms import BatchNorm, affine, output_axis, take_batch_norms
from isobit.graph.passes.protocol import PassReport
from isobit.graph.slots import Slot, weight_slot

FAINT = 2.0**-20
"""A channel's factor, relative to the largest, below which its weights count as 0: 32 bits would not hold its bias."""


@final
class OnGrid(nn.Module):
    """The quantizer of a weight whose values are on their grid for good: passes them, and declares the grid."""

    def __init__(self, grid: QParams) -> None:
        super().__init__()
        self.scheme, self._grid = grid.scheme, grid

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: x any."""
        return x

    def grid(self) -> QParams:
        """As given."""
        return self._grid


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class MergeBatchNormIntoScales:
    """Take every batch norm behind a quantized weight into its scales and the bias; no integer is rounded anew.

    With f = γ / sqrt(σ² + ε): s' = s |f|, q' = q sign(f), b' = β + (b - μ) f. Where a negative f turns a level over
    that has no opposite, the layer takes one more bit. What was merged cannot be trained any more.
    """

    name: str = "merge_bn_into_scales"
    requires: str = "a prepared and calibrated model, for an engine that takes a scale per output channel"
    ensures: str = "the output in eval mode is unchanged, to the rounding of float32"

    @torch.no_grad()
    def apply(self, model: fx.GraphModule) -> PassReport:
        """Merge in place. A batch norm that cannot be merged stays and is named."""

        def take(_: str, layer: nn.Module, norm: BatchNorm) -> str:
            slot = weight_slot(layer)
            return "its weight is in float" if slot is None else merge(layer, slot, norm)

        report = take_batch_norms(model, take)
        for name in report.changed:
            model.set_submodule(name, nn.Identity())
        return report


def merge(layer: nn.Module, slot: Slot, norm: BatchNorm) -> str:
    """Merge one batch norm in place, or say why not."""
    assert isinstance(layer.weight, Tensor)
    axis = output_axis(layer)
    weight = slot.quantizer(layer.weight)
    grid = slot.grid()
    if not isinstance(grid, QParams):
        return "its weight has no fixed scale"
    granularity = grid.scheme.granularity
    if not isinstance(granularity, PerTensor) and granularity != PerChannel(axis):
        return f"its weight has scales that are not per output channel: {grid.scheme}"
    f, bias = affine(layer, norm)
    scale = grid.scale.double() * f.abs()
    faint = scale <= FAINT * scale.max()
    turned = _turned(grid.quantize(weight), grid, f, faint, axis)
    if isinstance(turned, str):
        return turned
    q, scheme, codebook = turned
    scale = torch.where(faint, scale.max() if float(scale.max()) > 0 else 1.0, scale).to(grid.scale.dtype)
    merged = QParams(scale, torch.zeros_like(scale, dtype=torch.int32), scheme, codebook)
    kind = layer.weight.dtype
    layer.weight = nn.Parameter(merged.dequantize(q).to(kind))
    layer.bias = nn.Parameter(bias.to(kind))
    slot.quantizer = OnGrid(merged)
    return ""


def _turned(
    q: Tensor, grid: QParams, f: Tensor, faint: Tensor, axis: int
) -> tuple[Tensor, Scheme, Tensor | None] | str:
    """The integers (or indices) times the sign of f, 0 in faint channels, on levels that hold them; or why not."""
    if bool((grid.zero_point != 0).any()):
        return "its weight has a zero point"
    along: Tensor = expand(torch.where(faint, 0, f.sign()), q.dim(), PerChannel(axis)).to(torch.int32)
    scheme = replace(grid.scheme, granularity=PerChannel(axis))
    if grid.codebook is not None:
        values = grid.codebook[q.long()] * along
        table = torch.cat((grid.codebook, -grid.codebook)) if bool((f < 0).any()) else grid.codebook
        table = torch.cat((table, table.new_zeros(int(faint.any())))).unique()  # type: ignore[no-untyped-call]
        bits = max((len(table) - 1).bit_length(), 1)
        if bits > 8:
            return "its factor for a channel is 0 or negative, and a codebook of 8 bits has no room for the negatives"
        return torch.searchsorted(table, values.contiguous()), replace(scheme, bits=bits, signed=True), table
    turned = q * along
    if set(turned.flatten().tolist()) <= set(scheme.levels):
        return turned, scheme, None
    if isinstance(scheme.grid, Uniform) and scheme.bits < 8:
        return turned, replace(scheme, bits=scheme.bits + 1, narrow=False), None
    return f"its factor for a channel is 0 or negative, and {scheme} has no level 0 or {-scheme.quant_min}"
