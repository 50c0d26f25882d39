"""What flows through a file while it is imported: tensors of the graph, constants, and sizes that are not fixed."""

import operator
from collections.abc import Callable
from typing import Any, TypeAlias, final

import numpy as np
import torch
from torch import Tensor, fx

from isobit.core.errors import UnsupportedError

Sizes: TypeAlias = np.ndarray[Any, np.dtype[Any]]
"""An array of objects, each an int or a `Size`, at least one of them a `Size`."""

Value: TypeAlias = fx.Node | Tensor | Sizes
"""A result of the graph (its node), a constant, or an array of sizes."""

Pair: TypeAlias = tuple[Any, Any]
"""A result for two sets of example inputs that differ in each free dimension: what is equal in both is fixed."""


@final
class Size:
    """A length that is free, as a node of the graph that gives an int, and what it is for both examples."""

    def __init__(self, node: fx.Node, examples: Pair) -> None:
        self.node, self.examples = node, examples

    def __add__(self, other: Any) -> Any:
        return _computed(operator.add, self, other)

    def __radd__(self, other: Any) -> Any:
        return _computed(operator.add, other, self)

    def __sub__(self, other: Any) -> Any:
        return _computed(operator.sub, self, other)

    def __rsub__(self, other: Any) -> Any:
        return _computed(operator.sub, other, self)

    def __mul__(self, other: Any) -> Any:
        return _computed(operator.mul, self, other)

    def __rmul__(self, other: Any) -> Any:
        return _computed(operator.mul, other, self)

    def __floordiv__(self, other: Any) -> Any:
        return _computed(operator.floordiv, self, other)

    def __rfloordiv__(self, other: Any) -> Any:
        return _computed(operator.floordiv, other, self)

    def __truediv__(self, other: Any) -> Any:
        return _computed(operator.truediv, self, other)

    def __rtruediv__(self, other: Any) -> Any:
        return _computed(operator.truediv, other, self)

    def __mod__(self, other: Any) -> Any:
        return _computed(operator.mod, self, other)

    def __neg__(self) -> Any:
        return _computed(operator.neg, self)

    def whole(self) -> Any:
        """The same as an int, where it was computed as a float."""
        return _computed(torch.sym_int, self) if isinstance(self.examples[0], float) else self

    def __repr__(self) -> str:
        return f"Size({self.examples[0]} or {self.examples[1]})"


def _computed(function: Callable[..., Any], *args: Any) -> Any:
    """A size that follows from others; a plain number where both examples agree on it."""
    first, second = (function(*(a.examples[i] if isinstance(a, Size) else a for a in args)) for i in (0, 1))
    if first == second:
        return first
    nodes = tuple(a.node if isinstance(a, Size) else a for a in args)
    graph = next(a.node.graph for a in args if isinstance(a, Size))
    return Size(graph.call_function(function, nodes), (first, second))


def sizes_of(value: Value | None) -> Sizes:
    """A constant or sizes as an array of objects. Raises UnsupportedError for what is computed from the data."""
    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, Tensor):
        found = np.empty(tuple(value.shape), dtype=object)
        flat = [v.item() for v in value.reshape(-1)]
        for index, number in zip(np.ndindex(found.shape), flat, strict=True):
            found[index] = number
        return found
    raise UnsupportedError("a shape or a position is computed from the data, which no fixed graph can hold")


def settled(value: Any, dtype: torch.dtype = torch.int64) -> Value:
    """Sizes as a constant, where none of them is free."""
    array = np.asarray(value, dtype=object)
    if any(isinstance(v, Size) for v in array.reshape(-1)):
        return array
    return torch.tensor(array.tolist(), dtype=dtype).reshape(array.shape)


def numbers(value: Value | None) -> list[Any]:
    """The entries of a constant or of sizes, in order, each a number or a `Size`."""
    return list(sizes_of(value).reshape(-1))


def integers(value: Value | None, what: str) -> list[int]:
    """The entries of a constant. Raises UnsupportedError where one is not fixed."""
    found = numbers(value)
    if any(isinstance(v, Size) for v in found):
        raise UnsupportedError(f"its {what} depend on a size that the file leaves free")
    return [int(v) for v in found]
