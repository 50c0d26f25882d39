"""Linear layers of an exported graph: a Gemm and the constants of its quantized weight, read and replaced as one."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import final

import numpy as np
import onnx_ir as ir


@final
@dataclass(frozen=True, eq=False, slots=True)
class QuantizedGemm:
    """y = x · wᵀ + b with w = (q - zero_point) · scale, of integers q of the shape (out, in).

    `block` consecutive inputs share a scale; 0 where scales belong to the tensor or its outputs.
    """

    node: ir.Node
    dequantize: ir.Node
    name: str
    q: np.ndarray
    scale: np.ndarray
    zero_point: np.ndarray
    block: int

    @property
    def x(self) -> ir.Value:
        """The activation."""
        return _given(self.node.inputs[0])

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
        yield QuantizedGemm(node, producer, str(_given(producer.inputs[0]).name), q, scale, zero_point, block)


def replace(graph: ir.Graph, layer: QuantizedGemm, nodes: list[ir.Node]) -> None:
    """Put `nodes` in the place of a Gemm: the last one makes what the Gemm made, under its name."""
    old, new = layer.node.outputs[0], nodes[-1].outputs[0]
    for number, node in enumerate(nodes):
        last = number == len(nodes) - 1
        node.name = str(layer.node.name) if last else f"{layer.node.name}.{number + 1}.{node.op_type}"
        for output in node.outputs:
            output.name = node.name
        graph.insert_before(layer.node, node)
    new.type, new.shape = old.type, old.shape
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    graph.remove(layer.node, safe=True)
    new.name = old.name


def forget_unused(graph: ir.Graph, nodes: Iterable[ir.Node]) -> None:
    """Remove those of `nodes` that nothing reads any more, and the initializers that they alone have read."""
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
