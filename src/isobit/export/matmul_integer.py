"""Linear layers on inputs with dynamic ranges as MatMulInteger and one product with both scales."""

import numpy as np
import onnx_ir as ir

from isobit.export.linear_layers import QuantizedGemm, constant, forget_unused, quantized_gemms, replace


def write_matmul_integer(model: ir.Model) -> set[str]:
    """Replace each Gemm between a DynamicQuantizeLinear and a weight with one scale a tensor or an output.

    y = float32(Σ (q_x - z_x) (q_w - z_w)) · (s_x · s_w) + b, which ONNX Runtime runs as one kernel.
    Returns the names of the weights, which are now transposed.
    """
    graph = model.graph
    layers = [(layer, found) for layer in quantized_gemms(graph) if not layer.block and (found := _ranged(layer))]
    for layer, (dequantize, reshape) in layers:
        replace(graph, layer, _product(graph, layer, dequantize, reshape))
    left = [node for _, (dequantize, reshape) in layers for node in (reshape, dequantize) if node is not None]
    forget_unused(graph, [*(layer.dequantize for layer, _ in layers), *left])
    names = dict.fromkeys(layer.name for layer, _ in layers)
    for name in [name for name in names if name not in graph.initializers]:
        turned = graph.initializers.pop(_turned(name))
        turned.name = name
        graph.register_initializer(turned)
    return set(names)


def _turned(name: str) -> str:
    return f"{name}.turned"


def _ranged(layer: QuantizedGemm) -> tuple[ir.Node, ir.Node | None] | None:
    """The DequantizeLinear behind the DynamicQuantizeLinear of a layer's input, and the Reshape in between, if any;
    None where the input has no range of its own."""
    node, reshape = layer.x.producer(), None
    if node is not None and node.op_type == "Reshape":
        node, reshape = _first(node), node
    if node is None or node.op_type != "DequantizeLinear":
        return None
    source = _first(node)
    return (node, reshape) if source is not None and source.op_type == "DynamicQuantizeLinear" else None


def _first(node: ir.Node) -> ir.Node | None:
    return node.inputs[0].producer() if node.inputs[0] is not None else None


def _product(graph: ir.Graph, layer: QuantizedGemm, dequantize: ir.Node, reshape: ir.Node | None) -> list[ir.Node]:
    stem = layer.name.removesuffix(".q")
    q, scale, zero_point = dequantize.inputs
    nodes: list[ir.Node] = []
    if reshape is not None:
        nodes.append(ir.node("Reshape", [q, reshape.inputs[1]], attributes=dict(reshape.attributes)))
        q = nodes[0].outputs[0]
    factors: list[ir.Value | None] = [q, constant(graph, _turned(layer.name), layer.q.T.copy()), zero_point]
    if layer.zero_point.any():
        factors.append(constant(graph, f"{stem}.zero_point", layer.zero_point))
    sums = ir.node("MatMulInteger", factors)
    floats = ir.node("Cast", [sums.outputs[0]], attributes={"to": int(ir.DataType.FLOAT)})
    scales = ir.node("Mul", [scale, constant(graph, f"{stem}.scale", layer.scale.astype(np.float32))])
    nodes += [sums, floats, scales, ir.node("Mul", [floats.outputs[0], scales.outputs[0]])]
    if layer.bias is not None:
        nodes.append(ir.node("Add", [nodes[-1].outputs[0], layer.bias]))
    return nodes
