"""MNN's compression parameters as JSON beside a float network.

`MNNConvert -f ONNX --modelFile net.onnx --MNNModel net.mnn --compressionParamsFile net.json` reads it. For each layer
it names the tensors of input, weight and output with bits, scales, zero point and the ends of the levels; weights are
symmetric, with one scale or one for each output channel. x = (q - zero_point) · scale.

Sources: https://github.com/alibaba/MNN/blob/master/tools/converter/source/compression/MNN_compression.proto and
https://github.com/alibaba/MNN/blob/master/tools/converter/user_provide_quant_params.json; docs/tools/convert.md there
names the latter as the form of a file that a user provides. `round_mode` 2 is half to even, by the proto. Assumed: that
tensors go by their ONNX names, and that an output is that of the whole layer, behind its ReLU ("a block composed of
several operators ... should be considered as a single layer"). MNNConvert was not run: its command reports usage over
the network.
"""

from typing import Any

import numpy as np
import onnx_ir as ir

from isobit.core.errors import UnsupportedError
from isobit.export.beside import to_text
from isobit.export.encodings import Encoding, Encodings, ReadBack, read_integers, with_axes
from isobit.export.float_network import MOVES, FloatNetwork
from isobit.export.per_layer import QuantizedLayer, quantized_layers
from isobit.export.vendor_format import Held, Text, VendorFormat

FUSED = frozenset({"Relu", "Clip", "Min"})


def mnn() -> VendorFormat:
    """MNN's net.json beside net.onnx in floats."""
    return VendorFormat(format="mnn", what="MNN", opset=13, suffix=".json", write=_parameters, read=_read)


def _parameters(network: FloatNetwork) -> Text:
    weighted = {q.name: q for q in quantized_layers(network)}
    found = []
    for node in network.program.graph:
        if node.name in weighted:
            found.append(_layer(network, weighted[node.name]))
        elif node.op_type not in MOVES:
            found += _other(network, node)
    value = {"version": "0.0.0", "algo": [{"type": 0, "quant_params": {"round_mode": 2, "layer": found}}]}
    covered = {e["name"] for layer in found for key in ("input", "output") for e in layer[key]} | network.moved
    left = [name for name in network.encodings.activations if name not in covered]
    notes = [f"MNN's file has no place for the grids of {', '.join(left)}"] if left else []
    return to_text({"pipeline": value}), notes


def _read(held: Held) -> ReadBack:
    """The encodings of layers' inputs, outputs and weights, and the integers that follow."""
    (algorithm,) = held.json()["pipeline"]["algo"]
    activations: dict[str, Encoding] = {}
    weights: dict[str, Encoding] = {}
    for layer in algorithm["quant_params"]["layer"]:
        activations |= {e["name"]: _encoding(e) for e in (*layer["input"], *layer["output"])}
        weights |= {e["name"]: _encoding(e) for e in layer["weight"]}
    return read_integers(held.graph, Encodings(activations=activations, weights=with_axes(held.graph, weights)))


def _layer(network: FloatNetwork, q: QuantizedLayer) -> dict[str, Any]:
    if not q.weight.symmetric:
        raise UnsupportedError(f"{q.name}: MNN takes weights without zero points: quantize for such a target")
    return {
        "input": [_entry(q.layer.x, q.x)],
        "weight": [_entry(q.layer.weight, q.weight)],
        "output": [_entry(name, e) for name, e in _output(network, q.layer.node)],
        "method": 0,
    }


def _other(network: FloatNetwork, node: ir.Node) -> list[dict[str, Any]]:
    """An addition or a pooling, say: with grids of inputs and no weight; none for an op on floats."""
    encodings = network.encodings.activations
    names = [str(value.name) for value in node.inputs if value is not None]
    inputs = [_entry(name, encodings[name]) for name in names if name in encodings]
    outputs = [_entry(name, e) for name, e in _output(network, node)]
    return [{"input": inputs, "weight": [], "output": outputs, "method": 0}] if inputs else []


def _output(network: FloatNetwork, node: ir.Node) -> list[tuple[str, Encoding]]:
    """The encoding of what an op makes, behind the activations fused with it; none where it stays unrounded."""
    value = node.outputs[0]
    while str(value.name) not in network.encodings.activations:
        readers = [reader for reader, _ in value.uses()]
        if len(readers) != 1 or readers[0].op_type not in FUSED:
            return []
        value = readers[0].outputs[0]
    return [(str(value.name), network.encodings.activations[str(value.name)])]


def _entry(name: str, encoding: Encoding) -> dict[str, Any]:
    """q = k + zero_point in signed integers of the width."""
    zero_point = -(1 << (encoding.bits - 1)) - encoding.offset
    return {
        "name": name,
        "bits": encoding.bits,
        "scales": [float(s) for s in np.atleast_1d(encoding.scale)],
        "zero_point": int(zero_point.flat[0]),
        "clamp_min": int((encoding.lowest + zero_point).flat[0]),
        "clamp_max": int((encoding.highest + zero_point).flat[0]),
    }


def _encoding(entry: dict[str, Any]) -> Encoding:
    scales = np.array(entry["scales"], np.float32)
    scale = scales if len(scales) > 1 else scales[0]
    low, high = (entry[key] - entry["zero_point"] for key in ("clamp_min", "clamp_max"))
    ends = (np.full(np.shape(scale), end, np.int32) for end in (low, high))
    lowest, highest = ends
    return Encoding(
        bits=entry["bits"], symmetric=entry["zero_point"] == 0, scale=np.asarray(scale), lowest=lowest, highest=highest
    )
