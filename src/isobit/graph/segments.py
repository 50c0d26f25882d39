"""Segments: a graph cut into parts that run one after the other, by layer or by block."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from torch import fx, nn
from torch.nn.modules import container

from isobit.graph.insert import SLOTS
from isobit.graph.slots import weight_slot
from isobit.graph.tensors import Tensors, tensors_of

Unit = Literal["layer", "block"]

FUSED_BEHIND = frozenset(
    {"batch_norm", "relu", "relu6", "capped_relu", "clamp", "hardswish", "hardsigmoid", "silu", "gelu", "prelu"}
)
"""Kinds that belong to the layer in front of them."""


@dataclass(frozen=True, eq=False)
class Segment:
    """Nodes in a row. `inputs` they read from before, `outputs` is read behind them; `result` is the last tensor.

    `layers` are the names of its layers with quantized weights.
    """

    name: str
    nodes: tuple[fx.Node, ...]
    inputs: tuple[fx.Node, ...]
    outputs: tuple[fx.Node, ...]
    result: fx.Node
    layers: tuple[str, ...]


def segments(model: fx.GraphModule, unit: Unit) -> list[Segment]:
    """Cut a prepared graph into segments, each with at least one quantized layer, in the order of execution.

    A layer that is called more than once counts as none: it belongs to no single place.

    Layer: behind each layer and the activation that follows it. Block: only where a single tensor passes from one part
    to the next, and never within one of several modules of a class that hold two layers or more: a residual block, an
    inverted residual, an encoder layer. What stands between two segments belongs to the later one.
    """
    tensors = tensors_of(model)
    nodes = [n for n in model.graph.nodes if n.op not in ("placeholder", "get_attr", "output")]
    calls = Counter(str(n.target) for n in nodes if n.op == "call_module")
    weighted = {n: str(n.target) for n in nodes if calls[str(n.target)] == 1 and _is_quantized_layer(model, n)}
    cuts = _layer_cuts(tensors, nodes, weighted) if unit == "layer" else _block_cuts(tensors, nodes, weighted)
    found: list[list[fx.Node]] = [[]]
    for node in nodes:
        found[-1].append(node)
        if node in cuts and any(n in weighted for n in found[-1]):
            found.append([])
    if len(found) > 1 and not any(n in weighted for n in found[-1]):
        rest = found.pop()
        found[-1] += rest
    return [_segment(part, weighted) for part in found if any(n in weighted for n in part)]


def _segment(nodes: list[fx.Node], weighted: Mapping[fx.Node, str]) -> Segment:
    inside = set(nodes)
    inputs = dict.fromkeys(n for node in nodes for n in node.all_input_nodes if n not in inside and n.op != "get_attr")
    outputs = [n for n in nodes if any(user not in inside for user in n.users)]
    layers = tuple(dict.fromkeys(weighted[n] for n in nodes if n in weighted))
    name = layers[0] if len(layers) == 1 else _common(layers)
    return Segment(name, tuple(nodes), tuple(inputs), tuple(outputs), outputs[-1], layers)


def _common(layers: tuple[str, ...]) -> str:
    """The module that holds all layers, or the first and the last one."""
    parts = [name.split(".") for name in layers]
    shared = []
    for level in zip(*parts, strict=False):
        if len(set(level)) > 1:
            break
        shared.append(level[0])
    return ".".join(shared) or f"{layers[0]} to {layers[-1]}"


def _layer_cuts(tensors: Tensors, nodes: list[fx.Node], weighted: Mapping[fx.Node, str]) -> set[fx.Node]:
    """Behind each layer, its activation and the quantizer of the result, as far as these come next."""
    following = dict(pairwise(nodes))
    cuts = set()
    for node in weighted:
        end = node
        while (behind := following.get(end)) is not None and behind.all_input_nodes == [end]:
            fused = tensors.kinds[behind] in FUSED_BEHIND and len(end.users) == 1
            if not fused and not _is_slot(behind):
                break
            end = behind
        cuts.add(end)
    return cuts


def _block_cuts(tensors: Tensors, nodes: list[fx.Node], weighted: Mapping[fx.Node, str]) -> set[fx.Node]:
    """Where one tensor alone passes, between two blocks, behind its quantizer where it has one.

    A layer's activation stays with it also where no block holds them.
    """
    position = {node: i for i, node in enumerate(nodes)}
    last_use = [max((position.get(u, len(nodes)) for u in n.users), default=i) for i, n in enumerate(nodes)]
    ends_at = Counter(last_use)
    owner = _blocks(nodes, weighted)
    cuts, live = set(), 0
    for i, node in enumerate(nodes[:-1]):
        live += 1 - ends_at[i]
        live += 1 if last_use[i] == i and not node.users else 0  # a value that nobody reads was never alive
        behind = nodes[i + 1]
        reader = next((n for n in nodes[i + 1 :] if not _is_slot(n)), behind)  # a slot has the owner of its tensor
        same_block = owner[node] is not None and owner[node] == owner[reader]
        goes_on = len(node.users) == 1 and (_is_slot(behind) or tensors.kinds[behind] in FUSED_BEHIND)
        if live == 1 and last_use[i] > i and not same_block and not goes_on:
            cuts.add(node)
    return cuts


def _blocks(nodes: list[fx.Node], weighted: Mapping[fx.Node, str]) -> dict[fx.Node, str | None]:
    """The outermost block around each node: a module with two layers or more, of a class that occurs twice or more."""
    stacks = {node: _stack(node) for node in nodes}
    held: Counter[str] = Counter(path for node in weighted for path in stacks[node])
    kinds: dict[str, str] = {path: kind for stack in stacks.values() for path, kind in stack.items()}
    several = {path for path, count in held.items() if 1 < count < len(weighted) and kinds[path] not in _CONTAINERS}
    classes = Counter(kinds[path] for path in several)
    blocks = {path for path in several if classes[kinds[path]] > 1}
    return {node: next((p for p in stacks[node] if p in blocks), None) for node in nodes}


_CONTAINERS = {f"{c.__module__}.{c.__name__}" for c in (container.Sequential, container.ModuleList)}


def _stack(node: fx.Node) -> dict[str, str]:
    """The modules around a node, the outermost first: path to class."""
    stack: Iterable[tuple[str, Any]] = (node.meta.get("nn_module_stack") or {}).values()
    found = {}
    for path, kind in stack:
        name = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__name__}"
        if path and not path.startswith("_empty_nn_module_stack"):
            found[path] = name
    return found


def _is_slot(node: fx.Node) -> bool:
    return node.op == "call_module" and str(node.target).startswith(f"{SLOTS}.")


def _is_quantized_layer(model: fx.GraphModule, node: fx.Node) -> bool:
    if node.op != "call_module":
        return False
    module: nn.Module = model.get_submodule(str(node.target))
    return weight_slot(module) is not None
