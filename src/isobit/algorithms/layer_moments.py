"""What a layer's inputs were, in float and quantized: all that a squared error of its output depends on."""

from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd

from isobit.algorithms.activation_cache import ActivationCache, execute, slots_of
from isobit.algorithms.layer_columns import input_columns, weight_matrix
from isobit.graph.segments import Segment

AT_ONCE = 1 << 24
"""Values of input columns that are held at a time, about."""

FEWEST = 1 << 12
"""Inputs that are always taken where there are as many."""


@dataclass(frozen=True, eq=False)
class LayerMoments:
    """Of the columns x that a weight W meets in the float network and x̂ that it meets in the quantized one.

    `own` is Σ x̂ x̂ᵀ, `missing` is Σ r x̂ᵀ with what the output lacks, r = W (x - x̂); `lack` is Σ ||r||² and `power` is
    Σ ||W x||²; `inputs` is how many x̂ there were. Shapes, float64: own (groups, columns, columns), missing (groups,
    rows, columns).
    """

    own: Tensor
    missing: Tensor
    lack: float
    power: float
    inputs: int

    def loss(self, change: Tensor) -> float:
        """Σ ||W x - Ŵ x̂||² for Ŵ - W, (groups, rows, columns), float64."""
        return max(self.lack + float(((change @ self.own - 2 * self.missing) * change).sum()), 0.0)


@torch.no_grad()
def layer_moments(
    model: fx.GraphModule, part: Segment, exact: ActivationCache | None, rounded: ActivationCache, *, ratio: int
) -> LayerMoments:
    """The moments of a segment's only layer over all samples, from about `ratio` inputs for each of its columns.

    They are taken at even distances. Without `exact`, x is x̂: what the float weight would make of the same inputs.
    """
    (name,) = part.layers
    layer: nn.Module = model.get_submodule(name)
    weight = weight_matrix(layer, model.get_parameter(f"{name}.weight").detach())
    node = next(n for n in part.nodes if str(n.target) == name)
    before, source = part.nodes[: part.nodes.index(node)], node.all_input_nodes[0]
    own: Tensor = torch.zeros(())
    missing: Tensor = torch.zeros(())
    lack, power, inputs = 0.0, 0.0, 0
    for index in rounded.batches():
        with slots_of(model, part.nodes, "quantize"):
            x_hat = execute(model, before, rounded.batch(part.inputs, index))[source]
        x = x_hat
        if exact is not None:
            with slots_of(model, part.nodes, "float"):
                x = execute(model, before, exact.batch(part.inputs, index))[source]
        _, size, each = input_columns(layer, x_hat[:1]).shape
        every = _distance(layer, x_hat, each * rounded.samples * (len(x_hat) // len(index)) / max(ratio * size, FEWEST))
        few = max(AT_ONCE // (size * each * int(getattr(layer, "groups", 1))), 1)
        for seen, meant in zip(x_hat.split(few), x.split(few), strict=True):
            columns = input_columns(layer, seen, every=every)
            inputs += columns.shape[2]
            own = own + (columns @ columns.mT).double()
            meant_columns = columns if exact is None else input_columns(layer, meant, every=every)
            power += float((weight @ meant_columns).square().sum(dtype=torch.float64))
            residual = weight @ (meant_columns - columns)
            missing = missing + (residual @ columns.mT).double()
            lack += float(residual.square().sum(dtype=torch.float64))
    return LayerMoments(own, missing, lack, power, inputs)


def _distance(layer: nn.Module, x: Tensor, surplus: float) -> int:
    """Every how many outputs one is taken along an axis; of the rows of an image no fewer than eight are left."""
    if not isinstance(layer, _ConvNd):
        return max(min(int(surplus), len(x)), 1)
    dims = x.dim() - 2
    return max(min(int(surplus ** (1 / dims)), min(x.shape[2:]) // 8), 1)
