"""Attention in parts: its two matrix products become ops of their own, for targets that compute them with integers."""

from dataclasses import dataclass
from math import sqrt
from typing import Any, final

import torch
from torch import fx, nn

from isobit.graph.attention import Attention, AttentionWeights
from isobit.graph.functional import add_child
from isobit.graph.names import KEY, display_name
from isobit.graph.passes.protocol import PassReport

ATEN = torch.ops.aten


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class SplitAttention:
    """softmax(q kᵀ · scale + mask) v becomes a matmul, `AttentionWeights`, a dropout where there is one, and a matmul.

    Attention with a causal mask or with several queries to a key stays whole: no network of this toolkit's kind has it.
    """

    name: str = "split_attention"
    requires: str = "a captured model"
    ensures: str = "the output is unchanged, to the rounding of float32 products"

    def apply(self, model: fx.GraphModule) -> PassReport:
        """Rewrite in place."""
        changed: list[str] = []
        left: list[str] = []
        for node in list(model.graph.nodes):
            attention = model.get_submodule(str(node.target)) if node.op == "call_module" else None
            if not isinstance(attention, Attention):
                continue
            name = display_name(node)
            if reason := _whole(attention):
                left.append(f"{name}: {reason}")
                continue
            _split(model, node, attention)
            changed.append(name)
        model.graph.lint()
        model.recompile()
        return PassReport(changed=tuple(changed), left=tuple(left))


def _whole(attention: Attention) -> str:
    """Why an attention stays one op; empty where it does not."""
    if attention.is_causal:
        return "it has a causal mask of its own"
    return "several queries share a key" if attention.enable_gqa else ""


def _split(model: fx.GraphModule, node: fx.Node, attention: Attention) -> None:
    query, key, value, *mask = _arguments(node)
    path = str(node.target)
    owner = path.rpartition(".")[0]
    scale = attention.scale if attention.scale is not None else 1 / sqrt(query.meta["val"].shape[-1])
    with model.graph.inserting_before(node):
        turned = _call(node, ATEN.transpose.int, key, -2, -1)
        scores = _call(node, ATEN.matmul.default, query, turned)
        weights = _add(model, node, owner, "attention_weights", AttentionWeights(scale), scores, *mask)
        if attention.dropout:
            dropout = nn.Dropout(attention.dropout).train(attention.training)
            weights = _add(model, node, owner, "attention_dropout", dropout, weights)
        mixed = _call(node, ATEN.matmul.default, weights, value)
    node.replace_all_uses_with(mixed)
    model.graph.erase_node(node)
    if not any(n.target == path for n in model.graph.nodes):
        model.delete_submodule(path)


def _arguments(node: fx.Node) -> list[fx.Node]:
    """Query, key, value and, where there is one, the mask."""
    names = ("query", "key", "value", "attn_mask")
    found = [*node.args, *(node.kwargs[n] for n in names[len(node.args) :] if n in node.kwargs)]
    return [n for n in found if isinstance(n, fx.Node)]


def _call(like: fx.Node, function: Any, *args: Any) -> fx.Node:
    """A function in the place of `like`, with what is known of its result."""
    node = like.graph.call_function(function, args)
    node.meta = _meta(like) | {"val": function(*(a.meta["val"] if isinstance(a, fx.Node) else a for a in args))}
    return node


def _add(model: fx.GraphModule, like: fx.Node, owner: str, name: str, module: nn.Module, *args: fx.Node) -> fx.Node:
    """A module below `owner`, called in the place of `like`; its result is as large as what it reads first."""
    node = model.graph.call_module(add_child(model, owner, name, module), args)
    node.meta = _meta(like) | {"val": args[0].meta["val"]}
    return node


def _meta(like: fx.Node) -> dict[str, Any]:
    """Where a node comes from, less the name that it alone has."""
    return {key: value for key, value in like.meta.items() if key not in ("val", KEY)}
