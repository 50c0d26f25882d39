"""Mean and deviation of what layers compute, as the batch norms knew them that were folded into the layers."""

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from isobit.graph.passes.batch_norms import BatchNorm

KEY = "folded_moments"


@dataclass(frozen=True, eq=False)
class Moments:
    """Of each channel of a layer's output, over the data that the network was trained on: β and |γ|, float64."""

    mean: Tensor
    deviation: Tensor


def remember_moments(model: fx.GraphModule, layer: str, norm: BatchNorm) -> None:
    """Note what a batch norm says about its output, before it is folded into the layer of that name."""
    ones = torch.ones(norm.num_features, dtype=torch.float64)
    mean = 0 * ones if norm.bias is None else norm.bias.detach().double()
    deviation = ones if norm.weight is None else norm.weight.detach().double().abs()
    set_moments(model, layer, Moments(mean, deviation))


def moments_of(model: fx.GraphModule, layer: str) -> Moments | None:
    """What is known of a layer's output; None where no batch norm was folded into it."""
    found: dict[str, Moments] = model.meta.get(KEY, {})
    return found.get(layer)


def set_moments(model: fx.GraphModule, layer: str, moments: Moments) -> None:
    """Note the moments of a layer's output."""
    model.meta[KEY] = model.meta.get(KEY, {}) | {layer: moments}


def scale_moments(model: fx.GraphModule, layer: str, s: Tensor) -> None:
    """Note that a layer's channels were divided by s."""
    found = moments_of(model, layer)
    if found is not None:
        set_moments(model, layer, Moments(found.mean / s, found.deviation / s))
