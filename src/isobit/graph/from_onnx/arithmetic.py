"""Arithmetic, comparisons and reductions: they become functions of torch."""

from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any

import torch
from torch import Tensor, fx, nn

from isobit.core.errors import UnsupportedError
from isobit.graph.from_onnx.builder import Builder, dtype_of, rank
from isobit.graph.from_onnx.op import Op
from isobit.graph.from_onnx.values import Value, integers


def _scalar(value: Value, beside: Value) -> Any:
    """A constant of one entry as a number, where that does not change the shape of the result."""
    if isinstance(value, Tensor) and value.numel() == 1 and isinstance(beside, fx.Node) and value.dim() <= rank(beside):
        return value.item()
    return value


def _binary(function: Callable[..., Tensor], *, commutes: bool) -> Callable[[Builder, Op], Value]:
    def build(b: Builder, op: Op) -> Value:
        x, y = op.needed(0), op.needed(1)
        if commutes and isinstance(x, Tensor) and not isinstance(y, Tensor):
            x, y = y, x
        return b.call(function, x, _scalar(y, x))

    return build


def div(b: Builder, op: Op) -> Value:
    """x / y; of whole numbers the whole part."""
    x, y = op.needed(0), op.needed(1)
    if dtype_of(x).is_floating_point:
        return b.call(torch.div, x, _scalar(y, x))
    return b.call(torch.div, x, _scalar(y, x), rounding_mode="trunc")


def power(b: Builder, op: Op) -> Value:
    """x to the power of y, in the type of x."""
    x, y = op.needed(0), op.needed(1)
    exponent = _scalar(y, x)
    if isinstance(exponent, float) and not dtype_of(x).is_floating_point:
        raise UnsupportedError("an integer to the power of a float is not supported")
    return b.call(torch.pow, x, exponent)


def mod(b: Builder, op: Op) -> Value:
    """The remainder, with the sign of the divisor, or with `fmod` of the dividend."""
    x, y = op.needed(0), op.needed(1)
    return b.call(torch.fmod if op.flag("fmod") else torch.remainder, x, _scalar(y, x))


def _unary(function: Callable[..., Tensor]) -> Callable[[Builder, Op], Value]:
    return lambda b, op: b.call(function, op.needed(0))


def _several(function: Callable[..., Tensor]) -> Callable[[Builder, Op], Value]:
    def build(b: Builder, op: Op) -> Value:
        return reduce(lambda x, y: b.call(function, x, y), op.given())

    return build


def mean_of(b: Builder, op: Op) -> Value:
    """The mean of several tensors."""
    total = reduce(lambda x, y: b.call(torch.add, x, y), op.given())
    return b.call(torch.div, total, len(op.given()))


def where(b: Builder, op: Op) -> Value:
    """x where the condition holds, else y."""
    condition, x, y = op.needed(0), op.needed(1), op.needed(2)
    return b.call(torch.where, condition, _flat(x, condition), _flat(y, condition))


def _flat(value: Value, beside: Value) -> Value:
    """A constant of one entry without dimensions, so that it broadcasts and keeps its type."""
    if isinstance(value, Tensor) and value.numel() == 1 and value.dim() <= rank(beside):
        return value.reshape(())
    return value


def _axes(op: Op, x: Value) -> tuple[int, ...] | None:
    """The axes of a reduction, None where it keeps its input as it is."""
    axes = op.ints("axes") if op.input(1) is None else integers(op.input(1), "axes")
    if not axes:
        return None if op.flag("noop_with_empty_axes") else tuple(range(rank(x)))
    return tuple(sorted(a % rank(x) for a in axes))


def _reduction(function: Callable[..., Tensor]) -> Callable[[Builder, Op], Value]:
    def build(b: Builder, op: Op) -> Value:
        x = op.needed(0)
        axes = _axes(op, x)
        return x if axes is None else b.call(function, x, axes, op.flag("keepdims", 1))

    return build


def mean(b: Builder, op: Op) -> Value:
    """The mean along axes; over both axes of images, by a module as an exporter says, it is global average pooling."""
    x, keeps = op.needed(0), op.flag("keepdims", 1)
    axes = _axes(op, x)
    if axes is None:
        return x
    if axes == (2, 3) and rank(x) == 4 and keeps and op.scope:
        return b.layer(op, nn.AdaptiveAvgPool2d(1), x)
    return b.call(torch.mean, x, axes, keeps)


def _norm(order: int) -> Callable[[Builder, Op], Value]:
    def build(b: Builder, op: Op) -> Value:
        x = op.needed(0)
        axes = _axes(op, x)
        if axes is None:
            return b.call(torch.abs, x)
        return b.call(torch.linalg.vector_norm, x, order, axes, op.flag("keepdims", 1))

    return build


def sum_of_squares(b: Builder, op: Op) -> Value:
    """The sum of the squares along axes."""
    x = op.needed(0)
    axes, square = _axes(op, x), b.call(torch.mul, x, x)
    return square if axes is None else b.call(torch.sum, square, axes, op.flag("keepdims", 1))


def product(b: Builder, op: Op) -> Value:
    """The product along axes."""
    x = op.needed(0)
    for axis in reversed(_axes(op, x) or ()):
        x = b.call(torch.prod, x, axis, op.flag("keepdims", 1))
    return x


def _position(function: Callable[..., Tensor]) -> Callable[[Builder, Op], Value]:
    def build(b: Builder, op: Op) -> Value:
        if op.flag("select_last_index"):
            raise UnsupportedError("it takes the last of several equal values; only the first is supported")
        return b.call(function, op.needed(0), int(op.number("axis", 0)), op.flag("keepdims", 1))

    return build


def top_k(b: Builder, op: Op) -> list[Value]:
    """The largest values and their positions."""
    (count,) = integers(op.needed(1), "counts")
    largest, ordered = op.flag("largest", 1), op.flag("sorted", 1)
    return b.calls(torch.topk, op.needed(0), count, int(op.number("axis", -1)), largest, ordered)


def cumulative_sum(b: Builder, op: Op) -> Value:
    """Sums along an axis, from its begin up to each entry."""
    if op.flag("exclusive") or op.flag("reverse"):
        raise UnsupportedError("exclusive and reverse sums are not supported")
    (axis,) = integers(op.needed(1), "axes")
    return b.call(torch.cumsum, op.needed(0), axis)


def triangle(b: Builder, op: Op) -> Value:
    """The upper or the lower triangle."""
    offset = integers(op.input(1), "offsets")[0] if op.input(1) is not None else 0
    return b.call(torch.triu if op.flag("upper", 1) else torch.tril, op.needed(0), offset)


def einsum(b: Builder, op: Op) -> Value:
    """A sum of products by the letters of its axes."""
    return b.call(torch.einsum, op.text("equation"), *op.given())


def normalized(b: Builder, op: Op) -> Value:
    """x over its norm along an axis."""
    x, order, axis = op.needed(0), int(op.number("p", 2)), int(op.number("axis", -1))
    return b.call(torch.div, x, b.call(torch.linalg.vector_norm, x, order, axis, True))


OPS: Mapping[str, Callable[[Builder, Op], Value | list[Value]]] = {
    "Add": _binary(torch.add, commutes=True),
    "Sub": _binary(torch.sub, commutes=False),
    "Mul": _binary(torch.mul, commutes=True),
    "Div": div,
    "Pow": power,
    "Mod": mod,
    "Sqrt": _unary(torch.sqrt),
    "Reciprocal": _unary(torch.reciprocal),
    "Exp": _unary(torch.exp),
    "Log": _unary(torch.log),
    "Abs": _unary(torch.abs),
    "Neg": _unary(torch.neg),
    "Sign": _unary(torch.sign),
    "Erf": _unary(torch.erf),
    "Floor": _unary(torch.floor),
    "Ceil": _unary(torch.ceil),
    "Round": _unary(torch.round),
    "Sin": _unary(torch.sin),
    "Cos": _unary(torch.cos),
    "Atan": _unary(torch.atan),
    "Not": _unary(torch.logical_not),
    "IsNaN": _unary(torch.isnan),
    "And": _binary(torch.logical_and, commutes=True),
    "Or": _binary(torch.logical_or, commutes=True),
    "Xor": _binary(torch.logical_xor, commutes=True),
    "Equal": _binary(torch.eq, commutes=True),
    "Greater": _binary(torch.gt, commutes=False),
    "Less": _binary(torch.lt, commutes=False),
    "GreaterOrEqual": _binary(torch.ge, commutes=False),
    "LessOrEqual": _binary(torch.le, commutes=False),
    "Where": where,
    "Min": _several(torch.minimum),
    "Max": _several(torch.maximum),
    "Sum": _several(torch.add),
    "Mean": mean_of,
    "ReduceMean": mean,
    "ReduceSum": _reduction(torch.sum),
    "ReduceMax": _reduction(torch.amax),
    "ReduceMin": _reduction(torch.amin),
    "ReduceProd": product,
    "ReduceL1": _norm(1),
    "ReduceL2": _norm(2),
    "ReduceSumSquare": sum_of_squares,
    "ReduceLogSumExp": _reduction(torch.logsumexp),
    "ArgMax": _position(torch.argmax),
    "ArgMin": _position(torch.argmin),
    "TopK": top_k,
    "CumSum": cumulative_sum,
    "Trilu": triangle,
    "Einsum": einsum,
    "LpNormalization": normalized,
}
"""Arithmetic."""
