"""How the ops of a QDQ graph that move values are written as ops of ATen."""

from typing import Any

import torch

from isobit.core.errors import UnsupportedError
from isobit.export.pt2e_graph import ATEN, Translation
from isobit.integer.model import Node


def reshape(t: Translation, node: Node) -> None:
    """reshape to sizes that are known but for that of the batch.

    An Expand that spreads nothing is none, nor is a Reshape that a product made needless.
    """
    if id(node) in t.undone:
        t.same(node.outputs[0], node.inputs[0])
        return
    shape = t.shape(node.outputs[0])
    if shape.count(None) > 1:
        raise UnsupportedError(f"PT2E: {node.name} gives more than one size that depends on the batch")
    x = t.read(node.inputs[0], node)
    t.result(node, t.call(ATEN.reshape.default, (x, [-1 if s is None else s for s in shape]), node))


def expand(t: Translation, node: Node) -> None:
    """A constant once for each sample: it is added to zeros that have the batch of an input."""
    shape, given = t.shape(node.outputs[0]), t.shape(node.inputs[0])
    if shape == given:
        t.result(node, t.read(node.inputs[0], node))
        return
    anchor = t.graph.inputs[0]
    if shape[0] is not None or given != (1, *shape[1:]):
        raise UnsupportedError(f"PT2E: {node.name} spreads something else than a constant over the batch")
    size = t.call(ATEN.sym_size.int, (t.read(anchor, node), 0), node, "batch")
    x = t.read(node.inputs[0], node)
    t.result(node, t.call(ATEN.expand.default, (x, [size, *shape[1:]]), node))


def transpose(t: Translation, node: Node) -> None:
    """permute; of a constant, at once."""
    name = node.inputs[0]
    order = node.ints("perm", range(len(t.shape(name)))[::-1])
    if name in t.constants:
        t.constants[node.outputs[0]] = t.constants[name].transposed(order)
        return
    t.result(node, t.call(ATEN.permute.default, (t.read(name, node), order), node))


def concat(t: Translation, node: Node) -> None:
    """cat."""
    parts = [t.read(n, node) for n in node.inputs]
    t.result(node, t.call(ATEN.cat.default, (parts, int(node.attributes["axis"])), node))


def cut(t: Translation, node: Node) -> None:
    """slice, one axis after the other."""
    starts, ends = (t.fixed(n).reshape(-1).tolist() for n in node.inputs[1:3])
    rest = [t.fixed(n).reshape(-1).tolist() if n else None for n in (*node.inputs[3:5], "", "")[:2]]
    axes, steps = rest[0] or list(range(len(starts))), rest[1] or [1] * len(starts)
    x = t.read(node.inputs[0], node)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        if step < 1:
            raise UnsupportedError(f"PT2E: {node.name} slices backwards")
        x = t.call(ATEN.slice.Tensor, (x, int(axis), int(start), int(end), int(step)), node)
    t.result(node, x)


def gather(t: Translation, node: Node) -> None:
    """select for one constant index, embedding for rows of a constant."""
    axis = int(node.attributes.get("axis", 0))
    if t.is_constant(node.inputs[1]):
        index = t.fixed(node.inputs[1])
        if index.size != 1:
            raise UnsupportedError(f"PT2E: {node.name} gathers several constant indices")
        function = ATEN.slice.Tensor if index.ndim else ATEN.select.int
        place = int(index.reshape(-1)[0])
        x = t.read(node.inputs[0], node)
        ends: tuple[Any, ...] = (axis, place, place + 1 if place != -1 else 1 << 62) if index.ndim else (axis, place)
        t.result(node, t.call(function, (x, *ends), node))
        return
    if axis or not t.is_constant(node.inputs[0]) or t.is_integer(node.inputs[1]):
        raise UnsupportedError(f"PT2E: {node.name} gathers something else than rows of a constant")
    table, rows = t.read(node.inputs[0], node), t.read(node.inputs[1], node)
    t.result(node, t.call(ATEN.embedding.default, (table, rows), node))


def pad(t: Translation, node: Node) -> None:
    """constant_pad_nd."""
    mode = node.attributes.get("mode", b"constant")
    rank = len(t.shape(node.inputs[0]))
    given = t.fixed(node.inputs[1]).reshape(2, -1).tolist()
    axes = t.fixed(node.inputs[3]).tolist() if len(node.inputs) > 3 and node.inputs[3] else range(len(given[0]))
    if mode != b"constant":
        raise UnsupportedError(f"PT2E: {node.name} pads in the mode {mode.decode()}")
    pads = [0] * (2 * rank)
    for axis, before, after in zip(axes, *given, strict=True):
        last = rank - 1 - axis % rank
        pads[2 * last], pads[2 * last + 1] = int(before), int(after)
    value = float(t.fixed(node.inputs[2]).reshape(-1)[0]) if len(node.inputs) > 2 and node.inputs[2] else 0.0
    t.result(node, t.call(ATEN.constant_pad_nd.default, (t.read(node.inputs[0], node), pads, value), node))


def cast(t: Translation, node: Node) -> None:
    """Types of numbers: indices become int64, all else float32."""
    number = int(node.attributes["to"])
    kinds = {1: torch.float32, 6: torch.int32, 7: torch.int64, 9: torch.bool}
    if number not in kinds:
        raise UnsupportedError(f"PT2E: {node.name} casts to ONNX's type {number}")
    x = t.read(node.inputs[0], node)
    keywords: dict[str, Any] = {"dtype": kinds[number]}
    t.result(node, t.fx.create_node("call_function", ATEN._to_copy.default, (x,), keywords))
