"""Activations that a file writes as products: SiLU, hard swish, GELU."""

from math import isclose, pi, sqrt
from typing import Any

import torch
from torch import fx, nn

from isobit.graph.from_onnx.builder import NAME, Builder
from isobit.graph.from_onnx.fusions.matching import calls, factors, is_number, module_of, operands


def fuse(b: Builder, node: fx.Node) -> None:
    """Products of x and a function of x."""
    if not (calls(node, torch.mul) or calls(node, torch.div)):
        return
    nodes, scale = factors(b, node)
    if len(nodes) != 2:
        return
    for x, other in (nodes, nodes[::-1]):
        made = _of(b, x, other, scale)
        if made is not None:
            with b.graph.inserting_after(node):
                b.op = node.meta.get(NAME)
                assert b.op is not None
                new = b.layer(b.op, made, x)
            assert isinstance(new, fx.Node)
            node.replace_all_uses_with(new)
            return


def _of(b: Builder, x: Any, other: Any, scale: float) -> nn.Module | None:
    """The activation that x times a function of x is."""
    if isclose(scale, 1.0, rel_tol=1e-6):
        if module_of(b, other, nn.Sigmoid) is not None and other.args[0] is x:
            return nn.SiLU()
        if module_of(b, other, nn.Hardsigmoid) is not None and other.args[0] is x:
            return nn.Hardswish()
    sixth = isclose(scale, 1 / 6, rel_tol=1e-5) and module_of(b, other, nn.ReLU6) is not None
    if sixth and any(y is x and is_number(b, three, 3.0) for y, three in operands(other.args[0], torch.add)):
        return nn.Hardswish()
    if isclose(scale, 0.5, rel_tol=1e-6):
        for value, one in operands(other, torch.add):
            if is_number(b, one, 1.0) and calls(value, torch.erf) and _scaled(b, value.args[0], x, 1 / sqrt(2)):
                return nn.GELU()
            if is_number(b, one, 1.0) and module_of(b, value, nn.Tanh) and _is_inner(b, value.args[0], x):
                return nn.GELU(approximate="tanh")
    return None


def _scaled(b: Builder, value: Any, x: Any, by: float) -> bool:
    nodes, scale = factors(b, value)
    return len(nodes) == 1 and nodes[0] is x and isclose(scale, by, rel_tol=1e-5)


def _is_inner(b: Builder, value: Any, x: Any) -> bool:
    """√(2/π) (x + 0.044715 x³)."""
    nodes, scale = factors(b, value)
    if len(nodes) != 1 or not isclose(scale, sqrt(2 / pi), rel_tol=1e-4):
        return False
    for first, second in operands(nodes[0], torch.add):
        cubes, weight = factors(b, second)
        if first is x and isclose(weight, 0.044715, rel_tol=1e-4) and _is_cube(b, cubes, x):
            return True
    return False


def _is_cube(b: Builder, nodes: list[Any], x: Any) -> bool:
    if len(nodes) == 1 and calls(nodes[0], torch.pow):
        return nodes[0].args[0] is x and is_number(b, nodes[0].args[1], 3.0)
    return len(nodes) == 3 and all(n is x for n in nodes)
