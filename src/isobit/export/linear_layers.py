"""Linear layers of an exported graph: a Gemm and the constants of its quantized weight, read and replaced as one."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import final

import numpy as np
import onnx_ir as ir

KEEPS_SHAPE = frozenset({"Clip", "DequantizeLinear", "Gelu", "QuantizeLinear", "Relu"})
"""Ops that may stand between a Gemm and the reshape behind it: each does the same to every value."""


@final
@dataclass(frozen=True, eq=False, slots=True)
class QuantizedGemm:
    """y = x · wᵀ + b with w = (q - zero_point) · scale, of integers q of the shape (out, in).

    `block` consecutive inputs share a scale; 0 where scales belong to the tensor or its outputs. x has any number of
    dimensions: where a reshape makes two of them for the Gemm, `reshape` is the one that undoes it behind.
    """

    node: ir.Node
    reshape: ir.Node | None
    dequantize: ir.Node
    name: str
    q: np.ndarray
    scale: np.ndarray
    zero_point: np.ndarray
    block: int

    @property
    def x(self) -> ir.Value:
        """The input, before a reshape that is undone behind; another value once what makes it was replaced."""
        x = _given(self.node.inputs[0])
        before = x.producer()
        return x if self.reshape is None or before is None else _given(before.inputs[0])

    @property
    def bias(self) -> ir.Value | None:
        """The bias, None where the layer has none."""
        return self.node.inputs[2] if len(self.node.inputs) > 2 else None


def quantized_gemms(graph: ir.Graph) -> Iterator[QuantizedGemm]:
    """Every Gemm whose second input is a dequantized constant, in the order of the graph."""
    for node in list(graph):
        producer = node.inputs[1].producer() if node.op_type == "Gemm" and node.inputs[1] is not None else None
        if producer is None or producer.op_type != "DequantizeLinear":
            continue
        constants = [ir.convenience.get_const_tensor(value) for value in producer.inputs if value is not None]
        if len(constants) != 3 or any(c is None for c in constants):
            continue
        q, scale, zero_point = (c.numpy() for c in constants if c is not None)
        block = producer.attributes["block_size"].as_int() if "block_size" in producer.attributes else 0
        name = str(_given(producer.inputs[0]).name)
        yield QuantizedGemm(node, _undone(node), producer, name, q, scale, zero_point, block)


def _undone(gemm: ir.Node) -> ir.Node | None:
    """The reshape that undoes, behind a Gemm, the one of leading dimensions in front of it; None without them."""
    x, last = _given(gemm.inputs[0]), gemm
    before = x.producer()
    if before is None or before.op_type != "Reshape":
        return None
    while (reader := _only_reader(last)) is not None and reader.op_type in KEEPS_SHAPE:
        last = reader
    source = _given(before.inputs[0])
    if reader is None or reader.op_type != "Reshape":
        return None
    shapes = [value.shape for value in (x, source, reader.outputs[0])]
    if any(shape is None for shape in shapes):
        return None
    flat, wide, back = (list(shape) for shape in shapes if shape is not None)
    return reader if wide[:-1] == back[:-1] and wide[-1] == flat[-1] else None


def _only_reader(node: ir.Node) -> ir.Node | None:
    readers = [reader for reader, _ in node.outputs[0].uses()]
    return readers[0] if len(readers) == 1 and not node.outputs[0].is_graph_output() else None


def replace(graph: ir.Graph, layer: QuantizedGemm, nodes: list[ir.Node]) -> None:
    """Put `nodes` in the place of a layer: the last one makes what the layer made, under its name."""
    old, new = layer.node.outputs[0], nodes[-1].outputs[0]
    for number, node in enumerate(nodes):
        last = number == len(nodes) - 1
        node.name = str(layer.node.name) if last else f"{layer.node.name}.{number + 1}.{node.op_type}"
        for output in node.outputs:
            output.name = node.name
        graph.insert_before(layer.node, node)
    before, name = _given(layer.node.inputs[0]).producer(), old.name
    new.type, new.shape = old.type, old.shape
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    forget_unused(graph, dict.fromkeys(node for node in (layer.node, before) if node is not None))
    new.name = name
    if layer.reshape is not None:
        _drop(graph, new, layer.reshape)


def _drop(graph: ir.Graph, value: ir.Value, reshape: ir.Node) -> None:
    """Let what leads from `value` to a reshape have the shape behind it."""
    result = reshape.outputs[0]
    while True:
        value.shape = result.shape
        reader = next(node for node, _ in value.uses())
        if reader is reshape:
            break
        value = reader.outputs[0]
    result.replace_all_uses_with(value, replace_graph_outputs=True)
    forget_unused(graph, [reshape])
    value.name = result.name


def forget_unused(graph: ir.Graph, nodes: Iterable[ir.Node]) -> None:
    """Remove those of `nodes` that nothing reads any more, readers first, and the initializers they alone have read."""
    for node in nodes:
        if node.graph is None or any(output.uses() or output.is_graph_output() for output in node.outputs):
            continue
        inputs = [value for value in node.inputs if value is not None]
        graph.remove(node, safe=True)
        for value in inputs:
            if not value.uses() and str(value.name) in graph.initializers:
                del graph.initializers[str(value.name)]


def constant(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """An initializer of that name: the one that is there already, or a new one."""
    if name in graph.initializers:
        return graph.initializers[name]
    value = ir.val(name, const_value=ir.tensor(array, name=name))
    graph.register_initializer(value)
    return value


def _given(value: ir.Value | None) -> ir.Value:
    assert value is not None
    return value
