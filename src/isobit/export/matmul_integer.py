"""Linear layers on inputs with dynamic ranges as MatMulInteger and one product with both scales."""

import numpy as np
import onnx_ir as ir

from isobit.export.linear_layers import QuantizedGemm, constant, forget_unused, quantized_gemms, replace


def write_matmul_integer(model: ir.Model) -> None:
    """Replace each Gemm between a DynamicQuantizeLinear and a weight with one scale a tensor or an output.

    y = float32(Σ (q_x - z_x) (q_w - z_w)) · (s_x · s_w) + b, which ONNX Runtime runs as one kernel.
    """
    graph = model.graph
    layers = [layer for layer in quantized_gemms(graph) if not layer.block and _ranged(layer) is not None]
    inputs = [_ranged(layer) for layer in layers]
    for layer, dequantize in zip(layers, inputs, strict=True):
        assert dequantize is not None
        replace(graph, layer, _product(graph, layer, dequantize))
    forget_unused(graph, [*(layer.dequantize for layer in layers), *(node for node in inputs if node is not None)])
    for name in dict.fromkeys(layer.name for layer in layers if layer.name not in graph.initializers):
        turned = graph.initializers.pop(_turned(name))
        turned.name = name
        graph.register_initializer(turned)


def _turned(name: str) -> str:
    return f"{name}.turned"


def _ranged(layer: QuantizedGemm) -> ir.Node | None:
    """The DequantizeLinear behind the DynamicQuantizeLinear of a layer's input, None where its range is another's."""
    node = layer.x.producer()
    source = node.inputs[0].producer() if node is not None and node.inputs and node.inputs[0] is not None else None
    fits = source is not None and source.op_type == "DynamicQuantizeLinear" and node.op_type == "DequantizeLinear"  # type: ignore[union-attr]
    return node if fits else None


def _product(graph: ir.Graph, layer: QuantizedGemm, dequantize: ir.Node) -> list[ir.Node]:
    stem = layer.name.removesuffix(".q")
    q, scale, zero_point = dequantize.inputs
    factors: list[ir.Value | None] = [q, constant(graph, _turned(layer.name), layer.q.T.copy()), zero_point]
    if layer.zero_point.any():
        factors.append(constant(graph, f"{stem}.zero_point", layer.zero_point))
    sums = ir.node("MatMulInteger", factors)
    floats = ir.node("Cast", [sums.outputs[0]], attributes={"to": int(ir.DataType.FLOAT)})
    scales = ir.node("Mul", [scale, constant(graph, f"{stem}.scale", layer.scale.astype(np.float32))])
    nodes = [sums, floats, scales, ir.node("Mul", [floats.outputs[0], scales.outputs[0]])]
    if layer.bias is not None:
        nodes.append(ir.node("Add", [nodes[-1].outputs[0], layer.bias]))
    return nodes
