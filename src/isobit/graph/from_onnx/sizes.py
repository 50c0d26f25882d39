"""Arithmetic with shapes that hold a free length: `Shape`, `Gather`, `Concat` and what leads to a `Reshape`."""

import operator
from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import fx

from isobit.core.errors import UnsupportedError
from isobit.graph.from_onnx.builder import Builder
from isobit.graph.from_onnx.op import Op
from isobit.graph.from_onnx.types import dtype_of_onnx
from isobit.graph.from_onnx.values import Size, Sizes, Value, integers, settled, sizes_of


def shape(b: Builder, op: Op) -> Value:
    """The shape of a tensor, or a part of it."""
    found = b.shape(op.needed(0))
    start, end = int(op.number("start", 0)), op.number("end")
    return settled(_row(found[start : None if end is None else int(end)]))


def size(b: Builder, op: Op) -> Value:
    """How many entries a tensor has."""
    return settled(reduce(operator.mul, b.shape(op.needed(0)), 1))


def _row(values: list[Any]) -> Sizes:
    row = np.empty(len(values), dtype=object)
    row[:] = values
    return row


def _gather(op: Op) -> Any:
    index = np.array(integers(op.input(1), "positions")).reshape(sizes_of(op.input(1)).shape)
    return np.take(sizes_of(op.input(0)), index, axis=int(op.number("axis", 0)))


def _concat(op: Op) -> Any:
    return np.concatenate([sizes_of(v) for v in op.given()], axis=int(op.number("axis", 0)))


def _unsqueeze(op: Op) -> Any:
    found = sizes_of(op.input(0))
    for axis in sorted(integers(op.input(1), "axes")):
        found = np.expand_dims(found, axis)
    return found


def _squeeze(op: Op) -> Any:
    axes = None if op.input(1) is None else tuple(integers(op.input(1), "axes"))
    return np.squeeze(sizes_of(op.input(0)), axis=axes)


def _slice(op: Op) -> Any:
    found = sizes_of(op.input(0))
    starts, ends = integers(op.input(1), "starts"), integers(op.input(2), "ends")
    axes = range(len(starts)) if op.input(3) is None else integers(op.input(3), "axes")
    steps = [1] * len(starts) if op.input(4) is None else integers(op.input(4), "steps")
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        parts: list[Any] = [slice(None)] * found.ndim
        parts[axis] = slice(start, end, step)
        found = found[tuple(parts)]
    return found


def _cast(op: Op) -> Any:
    wanted = dtype_of_onnx(int(op.number("to")))
    change = float if wanted.is_floating_point else int
    return _each(sizes_of(op.input(0)), lambda v: _as(v, change))


def _as(value: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, Size):
        return value.whole() if change is int else value
    return change(value)


def _each(values: Sizes, function: Callable[[Any], Any]) -> Sizes:
    found = np.empty(values.shape, dtype=object)
    for index in np.ndindex(values.shape):
        found[index] = function(values[index])
    return found


def _pairwise(function: Callable[[Any, Any], Any]) -> Callable[[Op], Any]:
    def compute(op: Op) -> Any:
        first, second = np.broadcast_arrays(sizes_of(op.input(0)), sizes_of(op.input(1)))
        found = np.empty(first.shape, dtype=object)
        for index in np.ndindex(first.shape):
            found[index] = function(first[index], second[index])
        return found

    return compute


def _divided(a: Any, c: Any) -> Any:
    """Of whole numbers ONNX takes the whole part; lengths are never negative."""
    return a / c if any(isinstance(v, float) for v in (*_examples(a), *_examples(c))) else a // c


def _examples(value: Any) -> tuple[Any, ...]:
    return tuple(value.examples) if isinstance(value, Size) else (value,)


def _compared(compare: Callable[[Any, Any], bool]) -> Callable[[Any, Any], Any]:
    """A comparison that has one answer for both examples."""

    def decide(a: Any, c: Any) -> bool:
        first, second = (compare(*(v.examples[i] if isinstance(v, Size) else v for v in (a, c))) for i in (0, 1))
        if first != second:
            raise UnsupportedError("it compares a size that the file leaves free")
        return first

    return decide


def _extreme(smaller: bool) -> Callable[[Any, Any], Any]:
    less = _compared(operator.le)
    return lambda a, c: a if less(a, c) == smaller else c


def _where(op: Op) -> Any:
    choice, first, second = np.broadcast_arrays(*(sizes_of(op.input(i)) for i in range(3)))
    found = np.empty(choice.shape, dtype=object)
    for index in np.ndindex(choice.shape):
        found[index] = first[index] if choice[index] else second[index]
    return found


def _product(op: Op) -> Any:
    found = reduce(operator.mul, list(sizes_of(op.input(0)).reshape(-1)), 1)
    return _row([found]) if op.flag("keepdims", 1) else found


def _reshape(op: Op) -> Any:
    return sizes_of(op.input(0)).reshape(integers(op.input(1), "sizes"))


def _expand(op: Op) -> Any:
    found = sizes_of(op.input(0))
    return np.broadcast_to(found, np.broadcast_shapes(found.shape, tuple(integers(op.input(1), "sizes"))))


def _rounded(function: Callable[[Any], int]) -> Callable[[Op], Any]:
    def one(value: Any) -> Any:
        if isinstance(value, Size):
            if isinstance(value.examples[0], float):
                raise UnsupportedError("it rounds a size that the file leaves free")
            return value
        return float(function(value))

    return lambda op: _each(sizes_of(op.input(0)), one)


OPS: Mapping[str, Callable[[Op], Any]] = {
    "Gather": _gather,
    "Concat": _concat,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Slice": _slice,
    "Cast": _cast,
    "Identity": lambda op: sizes_of(op.input(0)),
    "Neg": lambda op: _each(sizes_of(op.input(0)), operator.neg),
    "Add": _pairwise(operator.add),
    "Sub": _pairwise(operator.sub),
    "Mul": _pairwise(operator.mul),
    "Div": _pairwise(_divided),
    "Mod": _pairwise(operator.mod),
    "Min": _pairwise(_extreme(True)),
    "Max": _pairwise(_extreme(False)),
    "Equal": _pairwise(_compared(operator.eq)),
    "Less": _pairwise(_compared(operator.lt)),
    "Greater": _pairwise(_compared(operator.gt)),
    "LessOrEqual": _pairwise(_compared(operator.le)),
    "GreaterOrEqual": _pairwise(_compared(operator.ge)),
    "Where": _where,
    "ReduceProd": _product,
    "Reshape": _reshape,
    "Expand": _expand,
    "Floor": _rounded(lambda v: int(v // 1)),
    "Ceil": _rounded(lambda v: int(-(-v // 1))),
}
"""Ops on sizes; each gives an array of numbers and sizes."""


_OF_SEVERAL = frozenset({"Concat", "Where", *(kind for kind, f in OPS.items() if f.__name__ == "compute")})
"""Those that compute with all of their inputs; the others take the first one, and constants that say how."""


def fits(op: Op) -> bool:
    """Whether a node computes with sizes, and with nothing that the network computes."""
    read = op.inputs if op.kind in _OF_SEVERAL else op.inputs[:1]
    sized = any(isinstance(v, np.ndarray) for v in read)
    return op.kind in OPS and sized and not any(isinstance(v, fx.Node) for v in op.inputs)


def computed(op: Op) -> Value:
    """The result of an op on sizes, a constant where nothing in it is free."""
    found = np.asarray(OPS[op.kind](op), dtype=object)
    flat = list(found.reshape(-1))
    kinds = {bool: torch.bool, float: torch.float32}
    dtype = next((kinds[type(v)] for v in flat if type(v) in kinds), torch.int64)
    return settled(found, dtype)
