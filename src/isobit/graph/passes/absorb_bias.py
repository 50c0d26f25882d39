"""High-bias absorption: what a channel always has moves into the next bias (Nagel et al. 2019, arXiv:1906.04721)."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from isobit.core.errors import SettingError
from isobit.graph.names import display_name
from isobit.graph.passes.equalize import (
    Pair,
    caps_between,
    change_caps,
    find_pairs,
    input_rows,
    own_parameters,
)
from isobit.graph.passes.folded_moments import Moments, moments_of, set_moments
from isobit.graph.passes.protocol import PassReport
from isobit.graph.tensors import Tensors, tensors_of


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class AbsorbBias:
    """Take c = max(0, β - 3 |γ|) from the bias of a layer's channels and add W₂ c to the next one's (section 4.1.3).

    A channel whose pre-activations lie far above 0 wastes the low part of the activation's range, which all channels
    share. relu(x) = relu(x - c) + c wherever x > c: for a normal x all but one value in 741. β and γ are those of the
    folded batch norm, and a cap becomes lower by c. Only where every weight of the next layer meets a value: not where
    zeros are padded in between, which would have to be -c.
    """

    deviations: float = 3.0
    name: str = "absorb_bias"
    requires: str = "a captured model whose batch norms `fold_bn` has merged, not prepared yet"
    ensures: str = "the output in eval mode is unchanged wherever no pre-activation is below what its channel gave away"

    def __post_init__(self) -> None:
        if not self.deviations >= 0:
            raise SettingError(f"deviations has to be 0 or more, got {self.deviations}")

    def apply(self, model: fx.GraphModule) -> PassReport:
        """Absorb in place: by how much is told for each pair of layers, and for every other one why not."""
        tensors = tensors_of(model)
        pairs, left = find_pairs(model, tensors)
        changed = []
        for pair in pairs:
            found = moments_of(model, pair.first)
            why = "no batch norm was merged into it" if found is None else _obstacle(model, tensors, pair)
            if why or found is None:
                left.append(f"{pair.first}: {why}")
                continue
            c = (found.mean - self.deviations * found.deviation).clamp(min=0)
            cap = caps_between(model, tensors, pair)
            c = c if cap is None else torch.minimum(c, cap.double())
            c = torch.where(c > torch.finfo(torch.float32).eps * found.mean.abs(), c, 0.0)  # not what rounding leaves
            if not bool(c.any()):
                continue
            _absorb(model, pair, c)
            change_caps(model, tensors, pair, lambda cap, c=c: cap - c)  # type: ignore[misc]
            set_moments(model, pair.first, Moments(found.mean - c, found.deviation))
            changed.append(
                f"{pair.first}, {pair.second}: {int((c > 0).sum())} of {len(c)} channels, up to {c.max():.3g}"
            )
        model.recompile()
        return PassReport(changed=tuple(changed), left=tuple(left))


def _obstacle(model: fx.GraphModule, tensors: Tensors, pair: Pair) -> str:
    """Why a constant cannot pass from the first layer to the bias of the second one, or nothing."""
    for node in pair.between:
        module = model.get_submodule(str(node.target)) if node.op == "call_module" else None
        pads = tensors.kinds[node] == "avg_pool" and getattr(module, "padding", 1) not in (0, (0, 0))
        if tensors.kinds[node] == "pad" or pads:
            return f"{display_name(node)} pads with zeros in front of {pair.second}"
    second = model.get_submodule(pair.second)
    if isinstance(second, _ConvTransposeNd):
        return f"the transposed convolution {pair.second} meets fewer values at its edges"
    if isinstance(second, _ConvNd) and second.padding_mode == "zeros" and any(second._reversed_padding_repeated_twice):
        return f"{pair.second} pads with zeros"
    return ""


@torch.no_grad()
def _absorb(model: fx.GraphModule, pair: Pair, c: Tensor) -> None:
    first, second = model.get_submodule(pair.first), model.get_submodule(pair.second)
    for layer in (first, second):
        own_parameters(layer)
    assert isinstance(first.bias, Tensor) and isinstance(second.weight, Tensor)
    first.bias.sub_(c.to(first.bias))
    rows = input_rows(second, second.weight).double().flatten(3).sum(3) if second.weight.dim() > 2 else None
    rows = input_rows(second, second.weight).double() if rows is None else rows
    moved = torch.einsum("gi,gio->go", c.reshape(rows.shape[:2]), rows).flatten()
    if not isinstance(second.bias, Tensor):
        second.bias = nn.Parameter(torch.zeros(len(moved), dtype=second.weight.dtype, device=second.weight.device))
    second.bias.add_(moved.to(second.bias))
