"""SmoothQuant: large channels of activations move into weights (Xiao et al., ICML 2023, arXiv:2211.10438)."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, fx, nn

from isobit.core.errors import SettingError
from isobit.graph.names import display_name
from isobit.graph.passes.equalize import LARGEST, change_caps, find_pairs, own_parameters, scale_channels
from isobit.graph.passes.protocol import PassReport
from isobit.graph.tensors import Tensors, tensors_of

MAXIMA = "input_maxima"
"""Where a model's meta holds the largest |x| of each input channel of its linear layers, by the layers' names."""


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class SmoothQuant:
    """Divide channel j of an activation by s_j = max |X_j|^α / max |W_j|^(1 - α) and multiply the weights by it.

    Equation 4; α = 1 moves all of the difficulty to the weights. s goes into the normalization in front (LayerNorm,
    RMSNorm), where linear layers alone read its result, or into a linear layer from which nothing but ReLU or the like
    leads to the next one. A GELU does not scale along, nor does a sum of a residual.
    """

    alpha: float = 0.5
    name: str = "smooth"
    requires: str = "a captured model, not prepared yet, whose meta holds `input_maxima`, found on calibration data"
    ensures: str = "the output in eval mode is unchanged, to the rounding of float32"

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise SettingError(f"the alpha of SmoothQuant is from 0 to 1, got {self.alpha}")

    def apply(self, model: fx.GraphModule) -> PassReport:
        """Smooth in place. A normalization that keeps its result, and why, is named."""
        tensors = tensors_of(model)
        calls = Counter(str(n.target) for n in model.graph.nodes if n.op == "call_module")
        maxima: dict[str, Tensor] = dict(model.meta.get(MAXIMA, {}))
        changed, left = [], []
        for node in model.graph.nodes:
            if tensors.kinds[node] != "layer_norm":
                continue
            readers = _linear_readers(model, tensors, node, calls)
            if isinstance(readers, str) or not readers or readers[0] not in maxima:
                left.append(f"{display_name(node)}: {readers if isinstance(readers, str) else _NEVER_RAN}")
                continue
            s = self._factors(model, maxima, readers)
            if _moves(s):
                _smooth_norm(model.get_submodule(str(node.target)), [model.get_submodule(r) for r in readers], s)
                changed.append(", ".join((str(node.target), *readers)))
                maxima |= {r: maxima[r] / s for r in readers}
        for pair in find_pairs(model, tensors)[0]:
            both = [model.get_submodule(name) for name in (pair.first, pair.second)]
            if not all(isinstance(layer, nn.Linear) for layer in both) or pair.second not in maxima:
                continue
            s = self._factors(model, maxima, [pair.second])
            if _moves(s):
                for layer in both:
                    own_parameters(layer)
                scale_channels(model, pair, s)
                change_caps(model, tensors, pair, lambda cap, s=s: cap / s)  # type: ignore[misc]
                changed.append(f"{pair.first}, {pair.second}")
                maxima[pair.second] = maxima[pair.second] / s
        model.meta[MAXIMA] = maxima
        model.recompile()
        return PassReport(changed=tuple(changed), left=tuple(left))

    def _factors(self, model: fx.GraphModule, maxima: Mapping[str, Tensor], readers: list[str]) -> Tensor:
        """s for each channel; 1 where the activation or every weight is 0."""
        x = maxima[readers[0]].double()
        weights = [model.get_parameter(f"{name}.weight").detach() for name in readers]
        w = torch.stack([weight.double().abs().amax(0) for weight in weights]).amax(0)
        s = torch.where((x > 0) & (w > 0), x**self.alpha / w ** (1 - self.alpha), 1.0)
        return s.clamp(1 / LARGEST, LARGEST)


_NEVER_RAN = "no calibration data has shown the largest inputs of its linear layers"


def _moves(s: Tensor) -> bool:
    """Whether s is more than what rounding to float32 leaves of a channel that is smooth already."""
    return float((s - 1).abs().max()) > 1e-5


def _linear_readers(model: fx.GraphModule, tensors: Tensors, node: fx.Node, calls: Counter[str]) -> list[str] | str:
    """The linear layers that read a normalization; or why it cannot be scaled."""
    norm = model.get_submodule(str(node.target)) if node.op == "call_module" else None
    if not isinstance(norm, (nn.LayerNorm, nn.RMSNorm)) or norm.weight is None or norm.weight.dim() != 1:
        return "it has no weight for each channel of the last axis"
    names = []
    for reader in tensors.readers(node):
        layer = model.get_submodule(str(reader.target)) if reader.op == "call_module" else None
        if not isinstance(layer, nn.Linear):
            return f"{display_name(reader)} ({tensors.kinds[reader]}) reads it"
        names.append(str(reader.target))
    if any(calls[name] != 1 for name in (str(node.target), *names)):
        return "a layer that is called more than once"
    return names


@torch.no_grad()
def _smooth_norm(norm: nn.Module, readers: list[nn.Module], s: Tensor) -> None:
    for layer in (norm, *readers):
        own_parameters(layer)
    for value in norm.parameters(recurse=False):
        value.div_(s.to(value))
    for layer in readers:
        assert isinstance(layer.weight, Tensor)
        layer.weight.mul_(s.to(layer.weight))
