"""ONNX with explicit quantization for devices of signed bytes: QuantizeLinear and DequantizeLinear with zero point 0.

TensorRT (`tensorrt`): every zero point is 0 and every type int8; activations have one scale, weights one for each
output channel; weights stay floats in front of a QuantizeLinear, which all its releases read; biases stay floats
without quantizers. Where quantizers stand is the target's placement: in front of convolutions and linear layers, and
not between a convolution and the addition that is fused with it. (The format `onnx` writes unsigned bytes with zero
point 128 for the same target: it is the twin for ONNX Runtime, which computes signed bytes in float.)

AMD's Vitis AI (`vitis-ai`): the same form with powers of two as scales, as its ONNX quantizer writes for DPUs and NPUs;
and beside it net.json, {"param": {name: [[8, position]]}, "output": ..., "input": ...} with scale = 2^-position, the
form of vai_q_pytorch's quant_info.json under the names of this file.

Sources: "Explicit Quantization" and "Q/DQ layer-placement recommendations",
https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/quantized-types-explicit-quantization.html
(releases before 8 documented weights of -127..127; that later ones take -128 is assumed); UG1414,
https://docs.amd.com/r/en-US/ug1414-vitis-ai/, and MQBench's Vitis backend. Assumed: the form of quant_info.json, and
that Vitis AI takes biases in float. Neither device was there to run a file.
"""

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from isobit.core.errors import ArtifactError, UnsupportedError
from isobit.export.beside import to_text
from isobit.export.encodings import (
    Encoding,
    Encodings,
    ReadBack,
    array,
    check_symmetric_bytes,
    symmetric_bytes,
)
from isobit.export.float_network import FloatNetwork, whole_tensors
from isobit.export.vendor_format import Held, Text, VendorFormat


def tensorrt() -> VendorFormat:
    """TensorRT's explicit quantization: one file."""
    return VendorFormat(
        format="tensorrt", what="TensorRT", opset=17, write=_tensorrt, read=lambda held: read_quantizers(held.graph)
    )


def vitis_ai() -> VendorFormat:
    """Vitis AI's net.onnx, and net.json with the positions."""
    return VendorFormat(format="vitis-ai", what="Vitis AI", opset=17, suffix=".json", write=_vitis, read=_read_vitis)


def _tensorrt(network: FloatNetwork) -> Text:
    notes = _lowest_weights(network)
    write_quantizers(network, what="TensorRT")
    return "", notes


def _vitis(network: FloatNetwork) -> Text:
    found, inputs = network.encodings, {str(value.name) for value in network.program.graph.inputs}
    positions = {
        "param": {name: [[e.bits, _position(name, e)]] for name, e in found.weights.items()},
        "output": {n: [[e.bits, _position(n, e)]] for n, e in found.activations.items() if n not in inputs},
        "input": {n: [[e.bits, _position(n, e)]] for n, e in found.activations.items() if n in inputs},
    }
    write_quantizers(network, what="Vitis AI")
    return to_text(positions), ()


def _read_vitis(held: Held) -> ReadBack:
    """Of the ONNX file; raises ArtifactError where the positions differ."""
    (found, _), positions = _encodings(held.graph), held.json()
    for kind, encodings in (("param", found.weights), ("output", found.activations), ("input", found.activations)):
        for name, ((bits, position),) in positions[kind].items():
            if name in encodings and (bits, 2.0**-position) != (8, float(encodings[name].scale)):
                raise ArtifactError(f"{held.path} and the file beside it have different positions of {name}")
    return read_quantizers(held.graph)


def write_quantizers(network: FloatNetwork, *, what: str) -> None:
    """Put QuantizeLinear and DequantizeLinear behind each tensor that has an encoding, in place."""
    graph, found = network.program.graph, network.encodings
    check_symmetric_bytes(found, lowest=-128, what=what)
    activations = {n: e for n, e in whole_tensors(network, what).items() if n not in network.moved}
    values = {str(value.name): value for value in graph.inputs}
    values |= {str(output.name): output for node in graph for output in node.outputs} | dict(graph.initializers)
    for name, encoding in {**activations, **found.weights}.items():
        _quantize(graph, values[name], encoding)


def _lowest_weights(network: FloatNetwork) -> list[str]:
    """A note on weights of -128."""
    graph = network.program.graph
    count = sum(int((e.integers(array(graph, n)) == -128).sum()) for n, e in network.encodings.weights.items())
    if not count:
        return []
    return [f"{count} weights are -128, which TensorRT has from its release 8 on: before, weights end at -127"]


def _quantize(graph: ir.Graph, x: ir.Value, encoding: Encoding) -> None:
    name = str(x.name)
    axis = {"axis": encoding.axis} if encoding.scale.ndim else {}
    scale, zero_point = (
        ir.val(f"{name}.{key}", const_value=ir.tensor(values, name=f"{name}.{key}"))
        for key, values in (("scale", encoding.scale), ("zero_point", np.zeros(encoding.scale.shape, np.int8)))
    )
    quantize = ir.node("QuantizeLinear", [x, scale, zero_point], attributes=axis, name=f"{name}.QuantizeLinear")
    q = quantize.outputs[0]
    dequantize = ir.node("DequantizeLinear", [q, scale, zero_point], attributes=axis, name=f"{name}.DequantizeLinear")
    result, producer = dequantize.outputs[0], x.producer()
    q.type, result.type = ir.TensorType(ir.DataType.INT8), ir.TensorType(ir.DataType.FLOAT)
    q.shape = result.shape = x.shape
    for value in (scale, zero_point):
        graph.register_initializer(value)
    is_output = x.is_graph_output()
    for reader, index in list(x.uses()):
        if reader is not quantize:
            reader.replace_input_with(index, result)
    if producer is None:
        graph.insert_before(graph[0], [quantize, dequantize])
    else:
        graph.insert_after(producer, [quantize, dequantize])
    q.name, result.name = f"{name}.q", f"{name}.dq"
    if is_output:
        graph.outputs[list(graph.outputs).index(x)] = result
        x.name, result.name = f"{name}.float", name


def read_quantizers(graph: ir.Graph) -> ReadBack:
    """The encodings of each QuantizeLinear, and the integers that those of weights, and of biases, make."""
    found, behind = _encodings(graph)
    integers = {name: encoding.integers(array(graph, name)) for name, encoding in found.weights.items()}
    integers |= _biases(graph, found, behind)
    return ReadBack(activations=found.activations, weights=found.weights, integers=integers)


def _encodings(graph: ir.Graph) -> tuple[Encodings, dict[str, str]]:
    """The encodings of each QuantizeLinear; and what stands behind a DequantizeLinear's result."""
    activations: dict[str, Encoding] = {}
    weights: dict[str, Encoding] = {}
    behind: dict[str, str] = {}
    for node in graph:
        if node.op_type != "QuantizeLinear":
            continue
        x, scale, zero_point = (str(value.name) for value in node.inputs if value is not None)
        zeros = array(graph, zero_point)
        if zeros.dtype != np.int8 or zeros.any():
            raise ArtifactError(f"{node.name}: not of signed bytes with zero point 0")
        axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
        encoding = symmetric_bytes(array(graph, scale), lowest=-128, axis=axis)
        ((dequantize, _),) = node.outputs[0].uses()
        result = str(dequantize.outputs[0].name)
        is_output = result in {str(value.name) for value in graph.outputs}
        behind[result] = result if is_output else x
        (weights if x in graph.initializers else activations)[behind[result]] = encoding
    return Encodings(activations=activations, weights=weights), behind


def _biases(graph: ir.Graph, encodings: Encodings, behind: Mapping[str, str]) -> dict[str, np.ndarray]:
    """rint(b / (s_x · s_w)) of the layers, which read dequantized weights here."""
    found = {}
    for node in graph:
        names = [None if value is None else str(value.name) for value in node.inputs]
        if len(names) < 3 or names[2] not in graph.initializers or names[1] not in behind:
            continue
        source = node.inputs[0]
        while source is not None and str(source.name) not in behind and source.producer() is not None:
            source = source.producer().inputs[0]  # type: ignore[union-attr]
        weight = encodings.weights[behind[str(names[1])]]
        x = None if source is None else encodings.activations.get(behind.get(str(source.name), ""))
        if x is not None:
            step = x.scale * weight.scale
            found[str(names[2])] = np.rint(array(graph, str(names[2])).astype(np.float64) / step).astype(np.int32)
    return found


def _position(name: str, encoding: Encoding) -> int:
    position = -np.log2(float(encoding.scale)) if not encoding.scale.ndim else 0.5
    if position != round(position):
        raise UnsupportedError(
            f"Vitis AI takes one power of two as the scale of a tensor, which that of {name} is not: quantize for a "
            "target with such scales, such as tvm"
        )
    return int(position)
