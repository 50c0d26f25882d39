"""Attention as torch.onnx.export writes scaled_dot_product_attention: both factors carry the root of the scale.

Attention that a network computes itself, softmax(q kᵀ / √d) v, stays as it is: its products are quantized as products.
"""

from math import isclose, sqrt
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from isobit.graph.from_onnx.builder import EXAMPLES, NAME, Builder, rank
from isobit.graph.from_onnx.fusions.matching import calls, is_number, module_of, number_of, operands


def fuse(b: Builder, node: fx.Node) -> None:
    """softmax((q √s) (kᵀ √s) + mask) v."""
    if not calls(node, torch.matmul):
        return
    weights: Any
    value: Any
    weights, value = node.args
    softmax = module_of(b, _without_nan(b, weights), nn.Softmax)
    if softmax is None or softmax.dim not in (-1, rank(value) - 1):
        return
    found = _scores(b, _without_nan(b, weights).args[0])
    if found is None:
        return
    query, transposed, scale, mask = found
    size = int(query.meta[EXAMPLES][0].shape[-1])
    with b.graph.inserting_before(node):
        b.op = node.meta.get(NAME)
        key = _swapped(b, transposed)
        new = b.call(
            F.scaled_dot_product_attention, query, key, value, attn_mask=mask, dropout_p=0.0, is_causal=False,
            scale=None if isclose(scale, 1 / sqrt(size), rel_tol=1e-5) else scale,
        )  # fmt: skip
    assert isinstance(new, fx.Node)
    node.replace_all_uses_with(new)


def _without_nan(b: Builder, weights: Any) -> Any:
    """What is behind where(isnan(w), 0, w), which stands for rows whose keys are all masked."""
    if calls(weights, torch.where) and calls(weights.args[0], torch.isnan) and is_zero(b, weights.args[1]):
        inner = weights.args[2]
        return inner if weights.args[0].args[0] is inner else weights
    return weights


def is_zero(b: Builder, value: Any) -> bool:
    """Whether a value is the number 0."""
    return number_of(b, value) == 0.0


def _scores(b: Builder, value: Any) -> tuple[fx.Node, fx.Node, float, Any] | None:
    """(q, kᵀ, scale, mask) of (q √s) (kᵀ √s) + mask."""
    for product, mask in ((value, None), *operands(value, torch.add)):
        if not calls(product, torch.matmul):
            continue
        (query, first), (key, second) = (_scaled(b, side) for side in product.args)
        if first is not None and second is not None and is_number(b, first, second) and rank(query) in (3, 4):
            return query, key, first * second, mask
    return None


def _scaled(b: Builder, value: Any) -> tuple[Any, float | None]:
    """(x, c) where a value is x c."""
    for x, c in operands(value, torch.mul):
        number = number_of(b, c)
        if number is not None:
            return x, number
    return value, None


def _swapped(b: Builder, value: fx.Node) -> fx.Node:
    """The value with its last two axes swapped; a transposition in front of it is undone instead."""
    dims = rank(value)
    order = _order(value)
    if order is not None:
        source = value.args[0]
        assert isinstance(source, fx.Node)
        order = (*order[:-2], order[-1], order[-2])
        if order == tuple(range(dims)):
            return source
        swapped = b.method("permute", source, order)
    elif (source := _batched_transposition(value)) is not None:
        return source
    else:
        swapped = b.call(torch.transpose, value, -2, -1)
    assert isinstance(swapped, fx.Node)
    return swapped


def _order(value: fx.Node) -> tuple[int, ...] | None:
    """The order of axes where a value is a permutation."""
    return tuple(value.args[1]) if value.op == "call_method" and value.target == "permute" else None  # type: ignore[arg-type]


def _batched_transposition(value: fx.Node) -> fx.Node | None:
    """The source of reshape, permute(0, 2, 1), reshape where these together swap the last two axes."""
    middle = value.args[0] if value.op == "call_method" and value.target == "reshape" else None
    if not isinstance(middle, fx.Node) or _order(middle) != (0, 2, 1):
        return None
    start = middle.args[0]
    if not isinstance(start, fx.Node) or start.target != "reshape" or not isinstance(start.args[0], fx.Node):
        return None
    source = start.args[0]
    before, flat, after = (n.meta[EXAMPLES][0].shape for n in (source, start, value))
    fits = before[-2:] == flat[-2:] and tuple(after) == (*before[:-2], before[-1], before[-2])
    return source if fits else None
