"""Bias correction: quantized layers keep their mean output (Nagel et al. 2019, arXiv:1906.04721, section 4.2)."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, fx, nn

from isobit.algorithms.activation_cache import ActivationCache, cached_inputs, execute, slots_of
from isobit.core.batches import Data
from isobit.core.progress import Progress, silent
from isobit.core.records import CorrectionRecord
from isobit.graph.segments import Segment, segments
from isobit.graph.slots import weight_slot


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class BiasCorrection:
    """Settings of the correction from data: b ← b - (E[ŷ] - E[y]) per output channel, layer after layer.

    y is a layer's output in the float network, ŷ that of the quantized one, where the layers before are corrected
    already. What weights and inputs lose on average, the bias gives back. `memory_limit` (bytes) is for what flows
    between layers.
    """

    memory_limit: int = 4 << 30

    def apply(self, model: fx.GraphModule, data: Data, *, progress: Progress = silent) -> tuple[CorrectionRecord, ...]:
        """Correct a calibrated network in place, and say by how much. Raises CalibrationError for unfit data."""
        model.eval()
        parts = segments(model, "layer")
        exact, rounded = cached_inputs(model, data, self.memory_limit)
        found = []
        for number, part in enumerate(parts):
            (name,) = part.layers
            node = next(n for n in part.nodes if str(n.target) == name)
            with torch.no_grad(), slots_of(model, part.nodes, "float"):
                wanted = _run(model, part, node, exact)
            with torch.no_grad(), slots_of(model, part.nodes, "quantize"):
                got = _run(model, part, node, rounded, corrected_to=wanted)
            found.append(_correct(model.get_submodule(name), name, got - wanted))
            later = {n for p in parts[number + 1 :] for n in p.inputs}
            exact.keep(later)
            rounded.keep(later)
            progress("correcting biases", number + 1, len(parts))
        return tuple(found)


def _run(
    model: fx.GraphModule,
    part: Segment,
    layer: fx.Node,
    cache: ActivationCache,
    *,
    corrected_to: Tensor | None = None,
) -> Tensor:
    """Run a segment over all samples; the mean of its layer's output over samples and positions, (channels,), float64.

    With `corrected_to`, what is behind the layer runs on an output that is moved to that mean.
    """
    end = part.nodes.index(layer) + 1
    before, behind = part.nodes[:end], part.nodes[end:]
    read = {n for node in behind for n in node.all_input_nodes} | set(part.outputs)
    kept, given = [n for n in before if n in read], [n for n in part.inputs if n in read]
    axis = -1 if isinstance(model.get_submodule(str(layer.target)), nn.Linear) else 1
    total, count = torch.zeros(()), 0
    for index in cache.batches():
        values = execute(model, before, cache.batch(part.inputs, index))
        rows = values[layer].movedim(axis, 0).flatten(1)
        total, count = total + rows.sum(1, dtype=torch.float64), count + rows.shape[1]
        for node in kept:
            cache.write(node, int(index[0]), len(index), values[node])
    mean = total / count
    for index in cache.batches():
        values = cache.batch([*kept, *given], index)
        if corrected_to is not None and layer in values:
            moved = values[layer].movedim(axis, -1) - (mean - corrected_to).to(values[layer])
            values[layer] = moved.movedim(-1, axis)
        values = execute(model, behind, values)
        for node in part.outputs:
            cache.write(node, int(index[0]), len(index), values[node])
    return mean


def _correct(layer: nn.Module, name: str, error: Tensor) -> CorrectionRecord:
    weight = layer.weight
    assert isinstance(weight, Tensor) and weight_slot(layer) is not None
    if not isinstance(layer.bias, Tensor):
        layer.bias = nn.Parameter(torch.zeros(len(error), dtype=weight.dtype, device=weight.device))
    with torch.no_grad():
        layer.bias.sub_(error.to(layer.bias))
    return CorrectionRecord(layer=name, largest=float(error.abs().max()), mean=float(error.abs().mean()))
