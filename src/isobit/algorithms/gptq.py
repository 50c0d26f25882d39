"""GPTQ: what rounding one column of a weight loses, the columns after it make up for (Frantar et al., ICLR 2023)."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, final

import torch
from torch import Tensor, fx, nn

from isobit.algorithms.activation_cache import ActivationCache, cached_inputs, execute, run_segment, slots_of
from isobit.algorithms.layer_columns import input_columns, weight_matrix, weight_of_matrix
from isobit.algorithms.reconstruction_progress import Done, replace_weight
from isobit.core.batches import Data
from isobit.core.errors import SettingError, UnsupportedError
from isobit.core.granularity import expand
from isobit.core.grid import Uniform
from isobit.core.progress import Progress, silent
from isobit.core.qparams import QParams
from isobit.core.records import SegmentRecord
from isobit.core.rounding import round_to_integer
from isobit.graph.segments import Segment, Unit, segments
from isobit.graph.slots import weight_slot
from isobit.quantizers.fixed import FixedQuantizer

AT_ONCE = 1 << 24
"""Values of input columns that are held at a time, about."""


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Gptq:
    """Settings of GPTQ (arXiv:2210.17323): min over Ŵ on the grid of E ||(W - Ŵ) x̂||², layer by layer.

    x̂ are a layer's inputs behind the quantized layers before it; scales stay as calibrated. `damping` times the mean
    of the Hessian's diagonal is added to it; with `ordered` the columns of the largest inputs are rounded first, for
    all rows in the same order. `block_size` columns pass on their error at once. Nothing is learned by descent and
    nothing is drawn: the seed decides nothing. `memory_limit` (bytes) is for what flows between layers.
    """

    unit: ClassVar[Unit] = "layer"
    damping: float = 0.01
    ordered: bool = True
    block_size: int = 128
    memory_limit: int = 4 << 30

    def __post_init__(self) -> None:
        if not self.damping > 0:
            raise SettingError(f"damping has to be above 0, or a Hessian may have no inverse; got {self.damping}")
        if self.block_size < 1:
            raise SettingError(f"block_size has to be at least 1, got {self.block_size}")

    def apply(
        self,
        model: fx.GraphModule,
        data: Data,
        *,
        seed: int = 0,
        checkpoint: Path | None = None,
        progress: Progress = silent,
    ) -> tuple[SegmentRecord, ...]:
        """Round the weights of a calibrated network in place; the noise of each layer's output, as above.

        A layer that gains nothing over rounding to nearest keeps that, as does one that is called more than once.
        Raises UnsupportedError, with the layer's name, for weights without even steps; CalibrationError for unfit data;
        ArtifactError for a checkpoint of another run.
        """
        del seed
        model.eval()
        parts = segments(model, self.unit)
        grids = {name: _grid(model, name) for part in parts for name in part.layers}
        _, rounded = cached_inputs(model, data, self.memory_limit)
        done = Done(checkpoint, model, rounded, self)
        for number, part in enumerate(parts):
            with torch.no_grad(), slots_of(model, part.nodes, "quantize"):
                if not done.restore(model, number):
                    done.add(model, part, self._round(model, part, rounded, grids))
                run_segment(model, part, rounded)
            rounded.keep({n for p in parts[number + 1 :] for n in p.inputs})
            progress("reconstructing", number + 1, len(parts))
        return done.records

    def _round(
        self, model: fx.GraphModule, part: Segment, inputs: ActivationCache, grids: dict[str, QParams]
    ) -> SegmentRecord:
        (name,) = part.layers
        layer, grid = model.get_submodule(name), grids[name]
        weight = model.get_parameter(f"{name}.weight").detach()
        matrix, hessian = weight_matrix(layer, weight).double(), _hessian(model, part, inputs)
        scale, zero_point = (
            weight_matrix(layer, expand(s, weight.dim(), grid.scheme.granularity).expand_as(weight))
            for s in (grid.scale, grid.zero_point)
        )

        def integers(w: Tensor, columns: Tensor) -> Tensor:
            s, z = (x.take_along_dim(columns, 2) for x in (scale, zero_point))
            q = round_to_integer(w.to(s.dtype) / s, grid.scheme.rounding) + z
            return q.clamp(grid.scheme.quant_min, grid.scheme.quant_max)

        def rounded(w: Tensor, columns: Tensor) -> Tensor:
            s, z = (x.take_along_dim(columns, 2) for x in (scale, zero_point))
            return ((integers(w, columns) - z) * s).double()

        every = torch.arange(matrix.shape[2])[None, None].expand(matrix.shape)
        nearest = rounded(matrix, every)
        found = round_columns(
            matrix, hessian, rounded, damping=self.damping, ordered=self.ordered, block_size=self.block_size
        )
        losses = [proxy_loss(matrix - w, hessian) for w in (nearest, found)]
        signal = proxy_loss(matrix, hessian) or 1.0
        if losses[1] < losses[0]:
            q = weight_of_matrix(layer, integers(found, every), weight.shape)
            replace_weight(model, name, grid.dequantize(q).to(weight.dtype))
        return SegmentRecord(name=part.name, layers=part.layers, nearest=losses[0] / signal, learned=losses[1] / signal)


def round_columns(
    weight: Tensor,
    hessian: Tensor,
    rounded: Callable[[Tensor, Tensor], Tensor],
    *,
    damping: float,
    ordered: bool,
    block_size: int,
) -> Tensor:
    """Algorithm 1: `weight` on its grid, column after column, each error passed on to the columns that follow.

    With U the upper Cholesky factor of H⁻¹: q_i = `rounded`(w_i), w_j -= (w_i - q_i) U_ij / U_ii for j > i. `rounded`
    takes columns and their numbers, both (groups, rows, n). Columns whose inputs were always 0 are rounded to nearest
    and move nothing; the published code sets them to 0, which a few samples do not justify.
    Shapes: weight (groups, rows, columns), hessian (groups, columns, columns), float64.
    """
    factors, order = _factors(hessian, damping=damping, ordered=ordered)
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


def _factors(hessian: Tensor, *, damping: float, ordered: bool) -> tuple[Tensor, Tensor]:
    """The upper Cholesky factors of the inverses of the damped Hessians, and the order of columns, (groups, columns).

    Columns that are dead have H_ii = 1, and the damping is that of the others.
    """
    diagonal = hessian.diagonal(dim1=1, dim2=2)
    dead = diagonal == 0
    mean = diagonal.sum(1) / (~dead).sum(1).clamp(min=1)
    order = diagonal.argsort(dim=1, descending=True, stable=True) if ordered else torch.arange(hessian.shape[1])[None]
    order = order.expand(hessian.shape[0], -1)
    damped = hessian + torch.diag_embed(torch.where(dead, 1.0, damping * mean[:, None]))
    damped = damped.take_along_dim(order[:, :, None], 1).take_along_dim(order[:, None, :], 2)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return torch.linalg.cholesky(inverse, upper=True), order


def proxy_loss(error: Tensor, hessian: Tensor) -> float:
    """Σ over rows of e H eᵀ: for H = X Xᵀ it is ||E X||². Shapes: error (groups, rows, columns)."""
    return float(((error @ hessian) * error).sum())


def _hessian(model: fx.GraphModule, part: Segment, inputs: ActivationCache) -> Tensor:
    """2 X̂ X̂ᵀ of a segment's layer over all samples: (groups, columns, columns), float64."""
    (name,) = part.layers
    layer: nn.Module = model.get_submodule(name)
    node = next(n for n in part.nodes if str(n.target) == name)
    before, source = part.nodes[: part.nodes.index(node)], node.all_input_nodes[0]
    total: Tensor | None = None
    for index in inputs.batches():
        x = execute(model, before, inputs.batch(part.inputs, index))[source]
        values = input_columns(layer, x[:1]).numel()
        for few in x.split(max(AT_ONCE // values, 1)):
            columns = input_columns(layer, few).double()
            square = columns @ columns.mT
            total = square if total is None else total + square
    assert total is not None
    return 2 * total


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
