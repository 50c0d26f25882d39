"""GPTQ: what rounding one column of a weight loses, the columns after it make up for (Frantar et al., ICLR 2023)."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, final

import torch
from torch import Tensor, fx

from isobit.algorithms.activation_cache import ActivationCache, cached_inputs, run_segment, segment_error, slots_of
from isobit.algorithms.layer_columns import weight_matrix, weight_of_matrix
from isobit.algorithms.layer_moments import LayerMoments, layer_moments
from isobit.algorithms.reconstruction_progress import Done, replace_weight, rescale, weight_slot_of
from isobit.algorithms.row_grid import RowGrid
from isobit.core.batches import Data
from isobit.core.errors import SettingError, UnsupportedError
from isobit.core.grid import Uniform
from isobit.core.progress import Progress, silent
from isobit.core.qparams import QParams
from isobit.core.records import SegmentRecord
from isobit.core.scheme import FloatScale
from isobit.graph.segments import Segment, Unit, segments
from isobit.graph.slots import weight_slot
from isobit.quantizers.fixed import FixedQuantizer

MANY_BITS = 8
"""From so many bits on a weight is nearly what it was."""

MOST_COLUMNS = 1 << 13
"""Of wider weights the Hessian takes gigabytes, and its inverse minutes."""

STACKED = 1 << 25
"""Weights that are rounded at a time, about."""


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Gptq:
    """Settings of GPTQ (arXiv:2210.17323): min over Ŵ on its grid of E ||W x - Ŵ x̂||² + λ ||W - Ŵ||², layer by layer.

    x̂ are a layer's inputs behind the quantized layers before it. x are its inputs in the float network, so that it
    undoes what those did (GPTAQ, Li et al., ICML 2025, arXiv:2504.02692); with `asymmetric` False x is x̂, as in GPTQ.
    λ is `damping` times the mean of the diagonal of E x̂ x̂ᵀ; None is 0.05 + 0.6 columns / inputs below 8 bits, for a
    weight of so many columns that saw so many inputs, and 3 from there on, where rounding leaves little to be made up
    for. Below 8 bits each scale of whole rows is multiplied by that of `factors` which leaves least of it. With
    `ordered` the columns of the largest inputs are rounded first, for all rows in the same order. `block_size` columns
    pass on their error at once.

    Of more than `samples` samples so many are used (None: 512, or 32 where all weights have 8 bits or more), and of
    what a layer sees in them about `ratio` inputs for each column of its weight, at even distances. Nothing is learned
    by descent and nothing is drawn: the seed decides nothing. `memory_limit` (bytes) is for what flows between layers.
    """

    unit: ClassVar[Unit] = "layer"
    damping: float | None = None
    asymmetric: bool = True
    factors: tuple[float, ...] = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.05, 1.1)
    ordered: bool = True
    block_size: int = 128
    samples: int | None = None
    ratio: int = 32
    memory_limit: int = 4 << 30

    def __post_init__(self) -> None:
        if self.damping is not None and not self.damping > 0:
            raise SettingError(f"damping has to be above 0, or there may be no minimum; got {self.damping}")
        if not all(f > 0 for f in self.factors):
            raise SettingError(f"factors multiply scales and have to be above 0, got {self.factors}")
        for name in ("block_size", "samples", "ratio"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise SettingError(f"{name} has to be at least 1, got {value}")

    def apply(
        self,
        model: fx.GraphModule,
        data: Data,
        *,
        seed: int = 0,
        checkpoint: Path | None = None,
        progress: Progress = silent,
    ) -> tuple[SegmentRecord, ...]:
        """Round the weights of a calibrated network in place; noise over signal of each layer's output.

        A layer that gains nothing over rounding to nearest keeps that, as does one that is called more than once, and
        one of more than 8,192 columns, of which a note speaks.
        Raises UnsupportedError, with the layer's name, for weights without even steps; CalibrationError for unfit data;
        ArtifactError for a checkpoint of another run.
        """
        del seed
        model.eval()
        parts = segments(model, self.unit)
        grids = {name: _grid(model, name) for part in parts for name in part.layers}
        few_bits = any(grid.scheme.bits < MANY_BITS for grid in grids.values())
        samples = (512 if few_bits else 32) if self.samples is None else self.samples
        exact, rounded = cached_inputs(model, data, self.memory_limit, most=samples)
        done = Done(checkpoint, model, rounded, self)
        for number, part in enumerate(parts):
            later = {n for p in parts[number + 1 :] for n in p.inputs}
            with torch.no_grad():
                with slots_of(model, part.nodes, "float"):
                    run_segment(model, part, exact)
                if not done.restore(model, number):
                    done.add(model, part, self._round(model, part, exact, rounded, grids))
                with slots_of(model, part.nodes, "quantize"):
                    run_segment(model, part, rounded)
            exact.keep(later)
            rounded.keep(later)
            progress("reconstructing", number + 1, len(parts))
        return done.records

    def _round(
        self,
        model: fx.GraphModule,
        part: Segment,
        exact: ActivationCache,
        rounded: ActivationCache,
        grids: dict[str, QParams],
    ) -> SegmentRecord:
        (name,) = part.layers
        layer, grid = model.get_submodule(name), grids[name]
        weight = model.get_parameter(f"{name}.weight").detach()
        if (columns := weight_matrix(layer, weight).shape[2]) > MOST_COLUMNS:
            note = f"{name}: its weight is rounded to nearest: {columns} columns are too many for GPTQ ({MOST_COLUMNS})"
            model.meta["notes"] = (*model.meta.get("notes", ()), note)
            error = segment_error(model, part, exact, rounded)
            return SegmentRecord(name=part.name, layers=part.layers, nearest=error, learned=error)
        matrix, rows = weight_matrix(layer, weight).double(), RowGrid.of(layer, weight, grid)
        moments = layer_moments(model, part, exact if self.asymmetric else None, rounded, ratio=self.ratio)
        damping = _damping(moments, grid.scheme.bits) if self.damping is None else self.damping
        hessian = moments.own + torch.diag_embed(_ridge(moments.own, damping))
        aim = matrix + torch.linalg.solve(hessian, moments.missing, left=False)
        to_nearest, factor = rows.rounded(matrix), self._factors(aim, hessian, rows)
        rows = rows if factor is None else rows.scaled(factor)
        found = self._rounded(aim, hessian, rows)
        nearest, learned = (moments.loss(w - matrix) for w in (to_nearest, found))
        if learned < nearest:
            if factor is not None:
                grid = QParams(grid.scale * factor.reshape(grid.scale.shape), grid.zero_point, grid.scheme)
                rescale(weight_slot_of(model, name), grid.scale)
            q = weight_of_matrix(layer, rows.integers(found), weight.shape)
            replace_weight(model, name, grid.dequantize(q).to(weight.dtype))
        power = moments.power or 1.0
        return SegmentRecord(name=part.name, layers=part.layers, nearest=nearest / power, learned=learned / power)

    def _rounded(self, aim: Tensor, hessian: Tensor, rows: RowGrid) -> Tensor:
        return round_columns(aim, hessian, rows.rounded, ordered=self.ordered, block_size=self.block_size)

    def _factors(self, aim: Tensor, hessian: Tensor, rows: RowGrid) -> Tensor | None:
        """The factor of least loss for each scale, float32; None where scales stay."""
        if rows.several or rows.scheme.bits >= MANY_BITS or not isinstance(rows.scheme.scale, FloatScale):
            return None
        several = torch.tensor((1.0, *self.factors))
        scales = int(rows.owner.max()) + 1
        losses = []
        for few in torch.split(several, max(STACKED // aim.numel(), 1)):
            stacked = aim.repeat(1, len(few), 1)
            error = stacked - self._rounded(stacked, hessian, rows.stacked(few))
            by_row = ((error @ hessian) * error).sum(2).reshape(len(aim), len(few), -1).transpose(0, 1)
            losses.append(by_row.new_zeros(len(few), scales).index_add_(1, rows.owner.flatten(), by_row.flatten(1)))
        return several[torch.cat(losses).argmin(0)]


def round_columns(
    weight: Tensor,
    hessian: Tensor,
    rounded: Callable[[Tensor, Tensor], Tensor],
    *,
    ordered: bool,
    block_size: int,
) -> Tensor:
    """Algorithm 1: `weight` on its grid, column after column, each error passed on to the columns that follow.

    With U the upper Cholesky factor of H⁻¹: q_i = `rounded`(w_i), w_j -= (w_i - q_i) U_ij / U_ii for j > i. `rounded`
    takes columns and their numbers, both (groups, rows, n). Columns whose inputs were always 0 meet the ridge alone:
    they are rounded to nearest and move nothing; the published code sets them to 0, which a few samples do not justify.
    Shapes: weight (groups, rows, columns), hessian (groups, columns, columns), positive definite, float64.
    """
    factors, order = _cholesky(hessian, ordered=ordered)
    numbers = order[:, None, :].expand(weight.shape)
    w = weight.take_along_dim(numbers, 2)
    result = torch.empty_like(w)
    for start in range(0, w.shape[2], block_size):
        stop = min(start + block_size, w.shape[2])
        errors = w.new_empty(*w.shape[:2], stop - start)
        for i in range(start, stop):
            now = w[..., i : i + 1]
            result[..., i : i + 1] = rounded(now, numbers[..., i : i + 1])
            error = (now - result[..., i : i + 1]) / factors[:, None, i, i : i + 1]
            w[..., i:stop] -= error * factors[:, None, i, i:stop]
            errors[..., i - start : i - start + 1] = error
        w[..., stop:] -= errors @ factors[:, start:stop, stop:]
    return torch.empty_like(result).scatter_(2, numbers, result)


def _cholesky(hessian: Tensor, *, ordered: bool) -> tuple[Tensor, Tensor]:
    """The upper Cholesky factors of the inverses, and the order of columns, (groups, columns)."""
    diagonal = hessian.diagonal(dim1=1, dim2=2)
    order = diagonal.argsort(dim=1, descending=True, stable=True) if ordered else torch.arange(hessian.shape[1])[None]
    order = order.expand(hessian.shape[0], -1)
    arranged = hessian.take_along_dim(order[:, :, None], 1).take_along_dim(order[:, None, :], 2)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(arranged))
    return torch.linalg.cholesky(inverse, upper=True), order


def _damping(moments: LayerMoments, bits: int) -> float:
    """As much as made the noise of the logits least, on MobileNetV2 with 50 images and ResNet-20 with 1,024."""
    return 3.0 if bits >= MANY_BITS else 0.05 + 0.6 * moments.own.shape[1] / moments.inputs


def _ridge(own: Tensor, damping: float) -> Tensor:
    """λ of each column, (groups, columns): `damping` times the diagonal's mean, but for columns that were all 0."""
    diagonal = own.diagonal(dim1=1, dim2=2)
    alive = (diagonal > 0).sum(1).clamp(min=1)
    mean = diagonal.sum(1) / alive
    return torch.where(mean > 0, damping * mean, 1.0)[:, None].expand_as(diagonal)


def _grid(model: fx.GraphModule, name: str) -> QParams:
    """The grid of a layer's weight; raises UnsupportedError for one without fixed, even steps."""
    slot = weight_slot(model.get_submodule(name))
    assert slot is not None
    if not isinstance(slot.quantizer, FixedQuantizer) or not isinstance(slot.quantizer.scheme.grid, Uniform):
        raise UnsupportedError(
            f"{name}: GPTQ rounds weights to fixed, even steps; its quantizer is {type(slot.quantizer).__name__}. "
            "Use `fixed`"
        )
    return slot.quantizer.grid()
