"""Layer norm that a file writes as means, roots and quotients."""

from typing import Any

import torch
from torch import Tensor, fx, nn

from isobit.graph.from_onnx.builder import EXAMPLES, NAME, Builder, rank
from isobit.graph.from_onnx.fusions.matching import (
    calls,
    constant_of,
    is_number,
    mean_over_last,
    number_of,
    operands,
)
from isobit.graph.from_onnx.layers import filled

_Core = tuple[Any, int, float]
"""What is normalized, over how many axes, and ε."""


def fuse(b: Builder, node: fx.Node) -> None:
    """(x - mean) / √(variance + ε) · γ + β, also as TensorFlow writes it; γ and β may be missing."""
    if (found := _by_quotient(b, node)) is not None:
        end, weight = _then(b, node, torch.mul, found)
        end, bias = _then(b, end, torch.add, found) if weight is not None else (end, None)
    elif (written := _by_scale(b, node)) is not None:
        found, weight, bias = written
        end = node
    else:
        return
    x, axes, eps = found
    shape = list(x.meta[EXAMPLES][0].shape[-axes:])
    if x.meta[EXAMPLES][1].shape[-axes:] != x.meta[EXAMPLES][0].shape[-axes:]:
        return
    layer = nn.LayerNorm(shape, eps=eps, elementwise_affine=weight is not None, bias=bias is not None, device="meta")
    layer = filled(
        layer, **{n: None if t is None else _spread(t, shape) for n, t in (("weight", weight), ("bias", bias))}
    )  # type: ignore[assignment]
    with b.graph.inserting_after(end):
        b.op = end.meta.get(NAME)
        assert b.op is not None
        new = b.layer(b.op, layer, x)
    assert isinstance(new, fx.Node)
    end.replace_all_uses_with(new)


def _spread(value: Tensor, shape: list[int]) -> Tensor:
    return value.reshape(value.shape[max(value.dim() - len(shape), 0) :]).expand(shape)


def _by_quotient(b: Builder, node: Any) -> _Core | None:
    """d / √(mean(d²) + ε) with d = x - mean(x), or d times the reciprocal of the root."""
    pairs = [node.args] if calls(node, torch.div) else []
    pairs += [(d, r.args[0]) for d, r in operands(node, torch.mul) if calls(r, torch.reciprocal)]
    for d, root in pairs:
        centred = _centred(d)
        if centred is not None and (eps := _deviation(b, root, *centred)) is not None:
            return (*centred, eps)
    return None


def _centred(d: Any) -> tuple[Any, int] | None:
    """(x, axes) where d = x - mean(x)."""
    if not calls(d, torch.sub):
        return None
    found = mean_over_last(d.args[1])
    return found if found is not None and found[0] is d.args[0] else None


def _deviation(b: Builder, root: Any, x: Any, axes: int) -> float | None:
    """ε where root = √(variance of x over its last axes + ε)."""
    if not calls(root, torch.sqrt):
        return None
    for variance, eps in operands(root.args[0], torch.add):
        number, mean = number_of(b, eps), mean_over_last(variance)
        if number is None or mean is None or mean[1] != axes:
            continue
        square = mean[0]
        if calls(square, torch.pow) and is_number(b, square.args[1], 2.0) and _centred(square.args[0]) == (x, axes):
            return number
        if calls(square, torch.mul) and all(_centred(d) == (x, axes) for d in square.args):
            return number
    return None


def _then(b: Builder, node: fx.Node, function: Any, core: _Core) -> tuple[fx.Node, Tensor | None]:
    """The next node and its constant, where a constant that spans the normalized axes is all that follows."""
    if len(node.users) != 1:
        return node, None
    (user,) = node.users
    for x, c in operands(user, function):
        constant = constant_of(b, c)
        if x is node and constant is not None and _spans(constant, core):
            return user, constant
    return node, None


def _spans(constant: Tensor, core: _Core) -> bool:
    x, axes, _ = core
    shape = list(x.meta[EXAMPLES][0].shape[-axes:])
    leading = list(constant.shape[:-axes])
    tail = list(constant.shape[-axes:])
    return constant.dim() <= rank(x) and all(n == 1 for n in leading) and tail == shape[len(shape) - len(tail) :]


def _by_scale(b: Builder, node: Any) -> tuple[_Core, Tensor, Tensor] | None:
    """x s + (β - mean(x) s) with s = γ / √(variance + ε)."""
    for product, offset in operands(node, torch.add):
        if not calls(offset, torch.sub) or (bias := constant_of(b, offset.args[0])) is None:
            continue
        for x, s in operands(product, torch.mul):
            means = [mean_over_last(m) for m, t in operands(offset.args[1], torch.mul) if t is s]
            mean = next((m for m in means if m is not None and m[0] is x), None)
            if mean is None:
                continue
            for r, g in operands(s, torch.mul):
                weight = constant_of(b, g)
                if weight is None or not calls(r, torch.reciprocal):
                    continue
                eps = _deviation(b, r.args[0], *mean)
                core = (*mean, eps or 0.0)
                if eps is not None and _spans(weight, core) and _spans(bias, core):
                    return core, weight, bias
    return None
