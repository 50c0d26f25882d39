"""Questions about nodes that patterns are made of."""

from collections.abc import Callable, Iterator
from math import isclose
from typing import Any

import torch
from torch import Tensor, fx, nn

from isobit.graph.from_onnx.builder import Builder, rank


def calls(value: Any, function: Callable[..., Any]) -> bool:
    """Whether a value is the result of this function."""
    return isinstance(value, fx.Node) and value.op == "call_function" and value.target is function


def module_of(b: Builder, value: Any, kind: type[nn.Module]) -> nn.Module | None:
    """The module of that type that makes a value."""
    if not isinstance(value, fx.Node) or value.op != "call_module":
        return None
    found = b.root.get_submodule(str(value.target))
    return found if isinstance(found, kind) else None


def constant_of(b: Builder, value: Any) -> Tensor | None:
    """The constant that a node reads."""
    if not isinstance(value, fx.Node) or value.op != "get_attr":
        return None
    return b.root.get_buffer(str(value.target))


def number_of(b: Builder, value: Any) -> float | None:
    """A number, or the only entry of a constant."""
    if isinstance(value, (int, float)):
        return float(value)
    constant = constant_of(b, value)
    return float(constant) if constant is not None and constant.numel() == 1 else None


def is_number(b: Builder, value: Any, wanted: float) -> bool:
    """Whether a value is this number, as float32 rounds it."""
    found = number_of(b, value)
    return found is not None and isclose(found, wanted, rel_tol=1e-5)


def operands(value: Any, function: Callable[..., Any]) -> Iterator[tuple[Any, Any]]:
    """Both operands of a commutative function, in both orders."""
    if calls(value, function) and len(value.args) == 2:
        first, second = value.args
        yield first, second
        yield second, first


def factors(b: Builder, value: Any, depth: int = 4) -> tuple[list[Any], float]:
    """A product taken apart: what is multiplied, and the product of its numbers."""
    number = number_of(b, value)
    if number is not None:
        return [], number
    if depth and calls(value, torch.mul):
        parts = [factors(b, v, depth - 1) for v in value.args]
        return [n for nodes, _ in parts for n in nodes], parts[0][1] * parts[1][1]
    if depth and calls(value, torch.div) and (by := number_of(b, value.args[1])):
        nodes, scale = factors(b, value.args[0], depth - 1)
        return nodes, scale / by
    return [value], 1.0


def mean_over_last(value: Any) -> tuple[Any, int] | None:
    """(x, axes) where a value is the mean of x over its last axes, which stay with length 1."""
    if not calls(value, torch.mean) or len(value.args) != 3 or value.args[2] is not True:
        return None
    x, axes = value.args[:2]
    dims = rank(x)
    return (x, len(axes)) if tuple(axes) == tuple(range(dims - len(axes), dims)) else None
