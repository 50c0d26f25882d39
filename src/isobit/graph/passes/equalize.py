"""Cross-layer equalization: channels of neighbouring layers get equal ranges (Nagel et al. 2019, arXiv:1906.04721)."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from isobit.graph.capped import CappedReLU
from isobit.graph.names import display_name
from isobit.graph.passes.batch_norms import output_axis
from isobit.graph.passes.folded_moments import scale_moments
from isobit.graph.passes.protocol import PassReport
from isobit.graph.tensors import Tensors, tensors_of

SCALABLE = frozenset({"relu", "leaky_relu", "prelu", "max_pool", "avg_pool", "global_avg_pool"})
"""Kinds with f(s x) = s f(x) for s > 0, channel by channel."""

CAPPED = frozenset({"relu6", "capped_relu"})
"""Kinds that are so once each channel has a cap of its own."""

SLACK = 4.0
"""How many times the usual ratio of activation to weight a channel may have before its activation counts."""

LARGEST = 1e4
"""A channel's factor stays between this and its inverse."""

CONVERGED = 1e-4
"""Equalization ends when no factor differs more from 1."""

SWEEPS = 1000


@dataclass(frozen=True, eq=False)
class Pair:
    """Two layers and what stands between them, scalable channel by channel."""

    first: str
    second: str
    between: tuple[fx.Node, ...]


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class EqualizeLayers:
    """Scale channel i of a layer by 1 / s and the weights that read it by s, so that both have the same range.

    s = sqrt(r₁ / r₂), r₁ and r₂ the largest magnitudes of its weights in the first and in the second layer (equation
    11), over all pairs again and again until nothing changes. Between the two may stand what scales along: ReLU, PReLU,
    pools, and ReLU6, whose cap becomes one for each channel, 6 / s; the paper drops it, which changes the network.
    Never across an add or a concat, or where a tensor has other readers.

    A channel whose weights are next to nothing and whose bias is not would get a range as large as its s is small, and
    all channels of the activation share one scale. So r₁ is at least a / t: a is the channel's largest activation, t
    `SLACK` times the median of a / r₁. It is guessed from cap, bias and weights (`guessed_activations`): no data.
    """

    name: str = "equalize"
    requires: str = "a captured model without batch norm between the layers, not prepared yet"
    ensures: str = "the output in eval mode is unchanged, to the rounding of float32"

    def apply(self, model: fx.GraphModule) -> PassReport:
        """Equalize in place. What follows a layer and keeps it from being equalized is named."""
        tensors = tensors_of(model)
        pairs, left = find_pairs(model, tensors)
        for name in dict.fromkeys(name for pair in pairs for name in (pair.first, pair.second)):
            own_parameters(model.get_submodule(name))
        total = {pair: torch.ones(1, dtype=torch.float64) for pair in pairs}
        seen = {p: guessed_activations(model, tensors, p).double() for p in pairs}
        for _ in range(SWEEPS):
            largest = 0.0
            for pair in pairs:
                s = _factors(model, pair, seen[pair] / total[pair])
                scale_channels(model, pair, s)
                total[pair] = total[pair] * s
                largest = max(largest, float((s - 1).abs().max()))
            if largest <= CONVERGED:
                break
        changed = [p for p in pairs if float((total[p] - 1).abs().max()) > CONVERGED]
        for pair in changed:
            change_caps(model, tensors, pair, lambda cap, s=total[pair]: cap / s)  # type: ignore[misc]
            scale_moments(model, pair.first, total[pair])
        model.meta["equalized"] = {pair.first: total[pair] for pair in changed}
        model.recompile()
        return PassReport(changed=tuple(f"{p.first}, {p.second}" for p in changed), left=tuple(left))


def find_pairs(model: fx.GraphModule, tensors: Tensors) -> tuple[list[Pair], list[str]]:
    """All pairs, in the order of the graph, and why other layers have none behind them."""
    calls = Counter(str(n.target) for n in model.graph.nodes if n.op == "call_module")
    pairs, left = [], []
    for node in model.graph.nodes:
        if not _is_layer(model, node):
            continue
        found = _follow(model, tensors, node, calls)
        if isinstance(found, Pair):
            pairs.append(found)
        elif found:
            left.append(f"{node.target}: {found}")
    return pairs, left


def _follow(model: fx.GraphModule, tensors: Tensors, node: fx.Node, calls: Counter[str]) -> Pair | str:
    """The pair that a layer begins, or what prevents one; nothing to say where the network ends."""
    first = model.get_submodule(str(node.target))
    between: list[fx.Node] = []
    now = node
    while True:
        if len(now.users) != 1:
            return "its output has several readers"
        (now,) = now.users
        kind = tensors.kinds[now]
        if now.op == "output":
            return ""
        if _is_layer(model, now):
            break
        flattens = kind == "reshape" and between and tensors.kinds[between[-1]] == "global_avg_pool"
        if not (kind in SCALABLE | CAPPED or tensors.transparent(now) or flattens or _zero_pad(model, now, kind)):
            return f"{display_name(now)} ({kind}) stands behind it"
        between.append(now)
    if max(calls[str(n.target)] for n in (node, now)) > 1:
        return "a layer that is called more than once"
    second = model.get_submodule(str(now.target))
    if inputs_of(second) != outputs_of(first):
        return f"{now.target} reads its channels as other ones"
    if isinstance(first, _ConvTransposeNd) and first.groups != 1:
        return "a grouped transposed convolution"
    if wrong := _other_axis(tensors, node, now, between):
        return wrong
    if now.all_input_nodes[0] is not (between[-1] if between else node):
        return f"{now.target} reads it as something else than its input"
    return Pair(str(node.target), str(now.target), tuple(between))


def _other_axis(tensors: Tensors, first: fx.Node, second: fx.Node, between: list[fx.Node]) -> str:
    """Why the channels of the first layer are not those that the second one, or what is between, reads; or nothing.

    A convolution has them on axis 1, a linear layer on the last one.
    """
    last = [tensors.kinds[node] == "linear" for node in (first, second)]
    ranks = [value.dim() if isinstance(value := n.meta.get("val"), Tensor) else 0 for n in (first, *between)]
    by_channel = any(tensors.kinds[n] not in ("relu", "leaky_relu", "dropout", "identity") for n in between)
    if (last[0] != last[1] or by_channel) and (last[0] or last[1]) and ranks[-1] != 2:
        return f"{second.target} reads its channels as other ones"
    return ""


def _zero_pad(model: fx.GraphModule, node: fx.Node, kind: str) -> bool:
    if kind == "pad" and node.op == "call_module":
        return getattr(model.get_submodule(str(node.target)), "value", None) == 0
    value = node.kwargs.get("value", node.args[3] if len(node.args) > 3 else 0)
    mode = node.kwargs.get("mode", node.args[2] if len(node.args) > 2 else "constant")
    return kind == "pad" and node.op == "call_function" and mode == "constant" and not value


def _is_layer(model: fx.GraphModule, node: fx.Node) -> bool:
    return node.op == "call_module" and isinstance(model.get_submodule(str(node.target)), (_ConvNd, nn.Linear))


def own_parameters(layer: nn.Module) -> None:
    """Give a layer a copy of its weight and bias, which another one may share."""
    for name, value in list(layer.named_parameters(recurse=False)):
        setattr(layer, name, nn.Parameter(value.detach().clone(), requires_grad=value.requires_grad))


def outputs_of(layer: nn.Module) -> int:
    """How many channels a layer gives."""
    return int(layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels)  # type: ignore[arg-type]


def inputs_of(layer: nn.Module) -> int:
    """How many channels a layer takes."""
    return int(layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels)  # type: ignore[arg-type]


def output_rows(layer: nn.Module, weight: Tensor) -> Tensor:
    """A view of the weight as (output channels, …)."""
    return weight.movedim(output_axis(layer), 0)


def input_rows(layer: nn.Module, weight: Tensor) -> Tensor:
    """A view of the weight as (groups, input channels of one, …): in their order the input channels."""
    grouped = weight.view(int(getattr(layer, "groups", 1)), -1, *weight.shape[1:])
    return grouped if isinstance(layer, _ConvTransposeNd) else grouped.transpose(1, 2)


@torch.no_grad()
def guessed_activations(model: fx.GraphModule, tensors: Tensors, pair: Pair) -> Tensor:
    """The largest activation of each channel between two layers, from the weights alone: (channels,).

    A cap where there is one; else |b| + 4 ||w||, as of inputs that are normal with deviation 1.
    """
    first = model.get_submodule(pair.first)
    assert isinstance(first.weight, Tensor)
    guess: Tensor = 4 * output_rows(first, first.weight).flatten(1).norm(dim=1)
    guess = guess + first.bias.abs() if isinstance(first.bias, Tensor) else guess
    for node in pair.between:
        if tensors.kinds[node] in CAPPED:
            module = model.get_submodule(str(node.target)) if node.op == "call_module" else None
            cap = module.cap if isinstance(module, CappedReLU) else torch.full_like(guess, 6.0)
            guess = torch.where(guess > 0, cap.to(guess), guess)
    return guess


@torch.no_grad()
def _factors(model: fx.GraphModule, pair: Pair, activation: Tensor) -> Tensor:
    """s for each channel; 1 where one of the two layers has nothing but zeros for it."""
    first, second = model.get_submodule(pair.first), model.get_submodule(pair.second)
    assert isinstance(first.weight, Tensor) and isinstance(second.weight, Tensor)
    r1 = output_rows(first, first.weight).flatten(1).double().abs().amax(1)
    r2 = input_rows(second, second.weight).flatten(2).double().abs().amax(2).flatten()
    live = r1 > 0
    if bool(live.any()):
        r1 = torch.maximum(r1, activation / (SLACK * (activation[live] / r1[live]).median()).clamp(min=1e-30))
    s = torch.where((r1 > 0) & (r2 > 0), (r1 / r2).sqrt(), 1.0)
    return s.clamp(1 / LARGEST, LARGEST)


@torch.no_grad()
def scale_channels(model: fx.GraphModule, pair: Pair, s: Tensor) -> None:
    """Divide the channels that the first layer gives by s, and multiply the weights that read them by it."""
    first, second = model.get_submodule(pair.first), model.get_submodule(pair.second)
    assert isinstance(first.weight, Tensor) and isinstance(second.weight, Tensor)
    rows = output_rows(first, first.weight)
    rows.div_(s.to(rows).reshape(-1, *[1] * (rows.dim() - 1)))
    if isinstance(first.bias, Tensor):
        first.bias.div_(s.to(first.bias))
    rows = input_rows(second, second.weight)
    rows.mul_(s.to(rows).reshape(*rows.shape[:2], *[1] * (rows.dim() - 2)))


def caps_between(model: fx.GraphModule, tensors: Tensors, pair: Pair) -> Tensor | None:
    """The lowest cap of each channel between two layers, (channels,); None without a cap."""
    channels = outputs_of(model.get_submodule(pair.first))
    found = [_cap(model, n, channels) for n in pair.between if tensors.kinds[n] in CAPPED]
    return torch.stack(found).amin(0) if found else None


def _cap(model: fx.GraphModule, node: fx.Node, channels: int) -> Tensor:
    module = model.get_submodule(str(node.target)) if node.op == "call_module" else None
    return module.cap if isinstance(module, CappedReLU) else torch.full((channels,), 6.0)


def change_caps(model: fx.GraphModule, tensors: Tensors, pair: Pair, change: Callable[[Tensor], Tensor]) -> None:
    """Give every cap between the two layers a new value for each channel, from the one it has."""
    channels = outputs_of(model.get_submodule(pair.first))
    for node in pair.between:
        if tensors.kinds[node] not in CAPPED:
            continue
        module = model.get_submodule(str(node.target)) if node.op == "call_module" else None
        new_cap = change(_cap(model, node, channels)).float()
        if isinstance(module, CappedReLU):
            module.cap = new_cap
            continue
        name = str(node.target) if module is not None else f"{node.name}_capped"
        if module is not None and sum(n.target == node.target for n in model.graph.nodes) > 1:
            name = f"{name}_{node.name}"
        model.add_submodule(name, CappedReLU(new_cap))
        if module is None:
            with model.graph.inserting_after(node):
                new = model.graph.call_module(name, (node.args[0],))
            new.meta = dict(node.meta)
            node.replace_all_uses_with(new)
            model.graph.erase_node(node)
        else:
            node.target = name
