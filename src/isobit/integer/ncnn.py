"""ncnn's files as QDQ graphs: what the integer reference evaluates.

An int8 layer reads its blob through QuantizeLinear, a Clip to -127..127 and DequantizeLinear; the scales are such that
their float32 reciprocals are the file's factors. Blobs are float tensors with a batch in front.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from isobit.core.errors import ArtifactError, UnsupportedError
from isobit.core.ncnn_file import Layer, read_ncnn

OPSET = 21
QUANTIZED = "/quantized"
"""What follows the name of a blob in the name of its integers."""


def qdq_of_ncnn(path: Path | str) -> onnx.ModelProto:
    """The graph of net.param, net.bin beside it. Raises ArtifactError, UnsupportedError for a layer without a rule."""
    layers, metadata = read_ncnn(path)
    reading = _Reading()
    try:
        for layer in layers:
            reading.add(layer)
        return reading.model(metadata)
    except (KeyError, IndexError, ValueError, OverflowError) as error:
        raise ArtifactError(f"{path} is damaged: {error}") from error


def reciprocal(factor: np.float32) -> np.float32:
    """A scale s with float32(1 / s) = `factor`, where there is one among the three nearest; else the nearest.

    >>> float(np.float32(1) / reciprocal(np.float32(37.3))) == float(np.float32(37.3))
    True
    """
    near = np.float32(1) / factor
    zero, far = np.float32(0), np.float32(np.inf)
    found = (s for s in (near, np.nextafter(near, zero), np.nextafter(near, far)) if np.float32(1) / s == factor)
    return np.float32(next(found, near))


@final
class _Reading:
    """The ONNX graph so far; `names` follows blobs through Splits."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self.inputs: list[onnx.ValueInfoProto] = []
        self.names: dict[str, str] = {}
        self.vectors: set[str] = set()
        self.read: set[str] = set()
        self.quantized: dict[tuple[str, float], str] = {}

    def add(self, layer: Layer) -> None:
        rules: Mapping[str, Callable[[Layer], None]] = {
            "Input": self._input,
            "Split": self._split,
            "Convolution": self._convolution,
            "ConvolutionDepthWise": self._convolution,
            "InnerProduct": self._inner_product,
            "Pooling": self._pooling,
            "Padding": self._padding,
            "BinaryOp": self._binary,
        }
        if layer.kind in rules:
            rules[layer.kind](layer)
            return
        x = [self._blob(name) for name in layer.inputs]
        match layer.kind:
            case "ReLU" if not layer.parameters.get(0):
                self._node("Relu", x, layer)
            case "Clip":
                limits = [self._constant(f"{layer.name}/{i}", layer.decimal(i)) for i in (0, 1)]
                self._node("Clip", [*x, *limits], layer)
            case "Sigmoid":
                self._node("Sigmoid", x, layer)
            case "Concat" if layer.number(0) == 0:
                self._node("Concat", x, layer, axis=1)
            case "Softmax" if layer.number(0) == 0 and x[0] in self.vectors:
                self._node("Softmax", x, layer, axis=1)
            case "Reshape" if layer.number(0, -233) == -1 and len(layer.parameters) == 1:
                self._node("Flatten", x, layer, axis=1)
                self.vectors.add(layer.outputs[0])
                return
            case _:
                raise UnsupportedError(f"ncnn: the layer {layer.name} ({layer.kind}) has no rule here")
        if x[0] in self.vectors:
            self.vectors.add(layer.outputs[0])

    def model(self, metadata: Mapping[str, str]) -> onnx.ModelProto:
        """The whole graph: what no layer reads is an output."""
        given = {value.name for value in self.inputs}
        ends = [name for name in dict.fromkeys(self.names.values()) if name not in self.read | given]
        shapes = {name: ["batch", None] if name in self.vectors else ["batch", None, None, None] for name in ends}
        outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shapes[name]) for name in ends]
        initializers = [numpy_helper.from_array(value, name) for name, value in self.constants.items()]
        graph = helper.make_graph(self.nodes, "main", self.inputs, outputs, initializers)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
        helper.set_model_props(model, dict(metadata))
        return model

    def _input(self, layer: Layer) -> None:
        sizes = [layer.number(key) for key in (2, 1, 0) if key in layer.parameters]
        if len(sizes) not in (1, 3):
            raise UnsupportedError(f"ncnn: the input {layer.name} has {len(sizes)} sizes: images have 3, vectors 1")
        (name,) = layer.outputs
        self.names[name] = name
        if len(sizes) == 1:
            self.vectors.add(name)
        self.inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *sizes]))

    def _split(self, layer: Layer) -> None:
        self.names |= dict.fromkeys(layer.outputs, self.names[layer.inputs[0]])

    def _convolution(self, layer: Layer) -> None:
        groups = layer.number(7, 1) if layer.kind == "ConvolutionDepthWise" else 1
        outputs, kernel_w = layer.number(0), layer.number(1)
        kernel_h = layer.number(11, kernel_w)
        if min(groups, outputs, kernel_w, kernel_h) < 1 or any(k in layer.parameters for k in (9, 10, 18)):
            raise UnsupportedError(f"ncnn: the layer {layer.name} has parameters without a rule here")
        weight = layer.weights[0].reshape(outputs, -1, kernel_h, kernel_w)
        left, top = layer.number(4), layer.number(14, layer.number(4))
        right, bottom = layer.number(15, left), layer.number(16, top)
        self._product(
            "Conv", layer, weight, bias=bool(layer.number(5)), group=groups, pads=[top, left, bottom, right],
            strides=[layer.number(13, layer.number(3, 1)), layer.number(3, 1)],
            dilations=[layer.number(12, layer.number(2, 1)), layer.number(2, 1)],
        )  # fmt: skip

    def _inner_product(self, layer: Layer) -> None:
        if 9 in layer.parameters:
            raise UnsupportedError(f"ncnn: the layer {layer.name} has parameters without a rule here")
        weight = layer.weights[0].reshape(layer.number(0), -1)
        self._product("Gemm", layer, weight, bias=bool(layer.number(1)), transB=1)
        self.vectors.add(layer.outputs[0])

    def _product(self, op: str, layer: Layer, weight: np.ndarray, *, bias: bool, **attributes: Any) -> None:
        """With a float bias. int8 weights come with the scales of weights and input."""
        x, name = self._blob(layer.inputs[0]), layer.name
        w = self._constant(f"{name}/weight", weight)
        if weight.dtype == np.int8:
            factors, factor = layer.weights[-2:]
            outputs = len(weight)
            scales = np.repeat([reciprocal(f) for f in factors], outputs // len(factors)).astype(np.float32)
            inputs = [w, self._constant(f"{name}/scale", scales)]
            inputs.append(self._constant(f"{name}/zero_point", np.zeros(outputs, np.int8)))
            self.nodes.append(helper.make_node("DequantizeLinear", inputs, [f"{w}/floats"], f"{name}/weight", axis=0))
            x, w = self._through(x, reciprocal(factor[0])), f"{w}/floats"
        added = [self._constant(f"{name}/bias", layer.weights[1])] if bias else []
        self._node(op, [x, w, *added], layer, **attributes)

    def _through(self, blob: str, scale: np.float32) -> str:
        """The blob, quantized and dequantized: once for each scale."""
        if (blob, float(scale)) in self.quantized:
            return self.quantized[blob, float(scale)]
        again = len([b for b, _ in self.quantized if b == blob])
        q = f"{blob}{f'/{again}' if again else ''}{QUANTIZED}"
        s, z = self._constant(f"{q}/scale", scale), self._constant(f"{q}/zero_point", np.int8(0))
        limits = [self._constant(f"{q}/{name}", np.int8(v)) for name, v in (("low", -127), ("high", 127))]
        self.nodes += [
            helper.make_node("QuantizeLinear", [blob, s, z], [q], q),
            helper.make_node("Clip", [q, *limits], [f"{q}/levels"], f"{q}/levels"),
            helper.make_node("DequantizeLinear", [f"{q}/levels", s, z], [f"{q}/floats"], f"{q}/floats"),
        ]
        self.quantized[blob, float(scale)] = f"{q}/floats"
        return f"{q}/floats"

    def _pooling(self, layer: Layer) -> None:
        x, kind = self._blob(layer.inputs[0]), layer.number(0)
        if layer.number(4):
            self._node("GlobalMaxPool" if kind == 0 else "GlobalAveragePool", [x], layer)
            return
        if layer.number(5) != 1 or kind not in (0, 1):
            raise UnsupportedError(f"ncnn: the layer {layer.name} pads in a way without a rule here")
        w, right, left, top = layer.number(1), layer.number(2, 1), layer.number(3), layer.number(13, layer.number(3))
        settings: dict[str, Any] = {
            "kernel_shape": [layer.number(11, w), w], "strides": [layer.number(12, right), right],
            "pads": [top, left, layer.number(15, top), layer.number(14, left)],
        }  # fmt: skip
        if kind == 1:
            settings["count_include_pad"] = layer.number(6)
        self._node("MaxPool" if kind == 0 else "AveragePool", [x], layer, **settings)

    def _padding(self, layer: Layer) -> None:
        if layer.number(4):
            raise UnsupportedError(f"ncnn: the layer {layer.name} pads in a way without a rule here")
        top, bottom, left, right, front, behind = (layer.number(key) for key in (0, 1, 2, 3, 7, 8))
        pads = np.array([0, front, top, left, 0, behind, bottom, right], np.int64)
        value = layer.decimal(5)
        inputs = [self._constant(f"{layer.name}/pads", pads), self._constant(f"{layer.name}/value", value)]
        self._node("Pad", [self._blob(layer.inputs[0]), *inputs], layer)

    def _binary(self, layer: Layer) -> None:
        if layer.number(0) != 0 or len(layer.inputs) != 2:
            raise UnsupportedError(f"ncnn: the layer {layer.name} is no sum of two blobs")
        self._node("Add", [self._blob(name) for name in layer.inputs], layer)

    def _node(self, op: str, inputs: list[str], layer: Layer, **attributes: Any) -> None:
        (output,) = layer.outputs
        self.nodes.append(helper.make_node(op, inputs, [output], layer.name, **attributes))
        self.names[output] = output

    def _blob(self, name: str) -> str:
        found = self.names[name]
        self.read.add(found)
        return found

    def _constant(self, name: str, value: Any) -> str:
        self.constants[name] = np.asarray(value)
        return name
