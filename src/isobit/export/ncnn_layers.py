"""ONNX ops as ncnn's layers. ncnn's blobs have no batch; one that several layers read goes through a Split."""

import re
from collections import Counter
from dataclasses import dataclass, replace
from typing import final

import numpy as np

from isobit.core.errors import UnsupportedError
from isobit.core.ncnn_file import Layer, Value
from isobit.integer.model import Graph, Node

_POSITIVE = frozenset({"MaxPool", "AveragePool", "GlobalAveragePool", "Reshape", "Flatten", "Slice", "Pad", "Concat"})
"""Ops whose results are not negative where their inputs are not."""


@dataclass(frozen=True, eq=False, slots=True)
class _Weight:
    """A constant behind a DequantizeLinear."""

    q: np.ndarray
    scale: np.ndarray

    @property
    def floats(self) -> np.ndarray:
        shape = (-1,) + (1,) * (self.q.ndim - 1) if self.scale.size > 1 else ()
        return np.asarray(self.q.astype(np.float32) * self.scale.reshape(shape), np.float32)


@final
class Network:
    """The layers so far. `blobs` names the float blob of a tensor, `quantized` also the scale at which it is read."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.layers: list[Layer] = []
        self.blobs: dict[str, str] = {}
        self.quantized: dict[str, tuple[str, np.float32]] = {}
        self.weights: dict[str, _Weight] = {}

    def input(self, name: str, shape: list[int]) -> None:
        """An input of the file, without its batch; ncnn wants the width first."""
        sizes: dict[int, Value] = dict(enumerate(int(size) for size in reversed(shape[1:])))
        self._layer("Input", name, [], name, sizes)

    def add(self, node: Node) -> None:
        """One op. Raises UnsupportedError for what ncnn has no form for."""
        special = {
            "QuantizeLinear": self._quantize,
            "DequantizeLinear": self._dequantize,
            "Conv": self._conv,
            "Gemm": self._product,
            "MatMul": self._product,
            "MaxPool": self._pool,
            "AveragePool": self._pool,
            "GlobalAveragePool": self._pool,
            "Slice": self._every,
            "Pad": self._pad,
        }
        if node.op in special:
            special[node.op](node)
        elif node.op == "Clip" and node.inputs[0] in self.quantized:
            self._levels(node)
        else:
            kind, parameters = self._plain(node)
            inputs = list(node.inputs) if kind in ("BinaryOp", "Concat") else [node.inputs[0]]
            self._layer(kind, node.name, inputs, node.outputs[0], parameters)

    def _plain(self, node: Node) -> tuple[str, dict[int, Value]]:
        """The kind and parameters of an op that is one layer without weights."""
        match node.op:
            case "Relu":
                return "ReLU", {}
            case "Sigmoid":
                return "Sigmoid", {}
            case "Clip":
                return "Clip", {0: self._constant(node, 1), 1: self._constant(node, 2)}
            case "Add":
                return "BinaryOp", {0: 0}
            case "Concat" if int(node.attributes["axis"]) == 1:
                return "Concat", {0: 0}
            case "Reshape" | "Flatten" if self.graph.rank(node.outputs[0]) == 2:
                return "Reshape", {0: -1}
            case "Softmax" if self.graph.rank(node.outputs[0]) == 2:
                return "Softmax", {0: 0, 1: 1}
        raise self._unsupported(node, "it has no form here")

    def finish(self) -> list[Layer]:
        """The layers, with a Split behind each blob that several read."""
        uses = Counter(name for layer in self.layers for name in layer.inputs)
        taken: Counter[str] = Counter()
        found = []
        for layer in self.layers:
            inputs = []
            for name in layer.inputs:
                inputs.append(f"{name}_split_{taken[name]}" if uses[name] > 1 else name)
                taken[name] += 1
            found.append(replace(layer, inputs=tuple(inputs)))
            for name in layer.outputs:
                if uses[name] > 1:
                    parts = tuple(f"{name}_split_{i}" for i in range(uses[name]))
                    found.append(Layer("Split", f"split_{name}", (name,), parts))
        wrong = [name for name in self.graph.outputs if self.blobs.get(name) is None]
        if wrong:
            raise UnsupportedError(f"ncnn gives floats, and the output {wrong[0]} is quantized: keep it in float")
        return found

    def _quantize(self, node: Node) -> None:
        scale, zero_point = (self.graph.constants[name] for name in node.inputs[1:3])
        reader = self.graph.only_reader(node.outputs[0])
        clipped = reader is not None and reader.op == "Clip"  # unsigned levels go up to 127 with it alone
        if scale.size != 1 or zero_point.any() or not (zero_point.dtype == np.int8 or clipped):
            raise self._unsupported(node, "activations have to be signed bytes with one scale and no zero point")
        blob = self._blob(node, node.inputs[0])
        self.quantized[node.outputs[0]] = (blob, np.float32(scale.reshape(())))

    def _dequantize(self, node: Node) -> None:
        name, scale = node.inputs[0], self.graph.constants[node.inputs[1]].astype(np.float32)
        if name in self.quantized:
            self.quantized[node.outputs[0]] = self.quantized[name]
        elif name in self.graph.constants and int(node.attributes.get("axis", 0)) in (0, -1, 1):
            self.weights[node.outputs[0]] = _Weight(self.graph.constants[name], scale)
        else:
            raise self._unsupported(node, "it reads what is neither an activation nor a weight")

    def _levels(self, node: Node) -> None:
        """ncnn's levels are -127 to 127; a lowest level of 0 is a ReLU."""
        blob, scale = self.quantized[node.inputs[0]]
        low, high = (int(self._constant(node, i)) for i in (1, 2))
        if high != 127 or low not in (-127, 0):
            raise self._unsupported(node, f"ncnn has the levels -127 to 127, these are {low} to {high}")
        quantizer = self.graph.producers[node.inputs[0]]
        if low == 0 and not self._is_positive(quantizer.inputs[0]):
            self._layer("ReLU", f"{node.name}/relu", [quantizer.inputs[0]], f"{node.outputs[0]}/relu")
            blob = self.blobs[f"{node.outputs[0]}/relu"]
        self.quantized[node.outputs[0]] = (blob, scale)

    def _is_positive(self, tensor: str) -> bool:
        node = self.graph.producers.get(tensor)
        if node is None:
            return False
        if node.op == "Clip":
            return node.inputs[1] in self.graph.constants and float(self.graph.constants[node.inputs[1]]) >= 0
        inputs = node.inputs if node.op == "Concat" else node.inputs[:1]
        return node.op == "Relu" or (node.op in _POSITIVE and all(self._is_positive(x) for x in inputs))

    def _conv(self, node: Node) -> None:
        weight = self._weight(node, node.inputs[1])
        if weight.q.ndim != 4:
            raise self._unsupported(node, "convolutions have two dimensions here")
        outputs, groups = weight.q.shape[0], int(node.attributes.get("group", 1))
        top, left, bottom, right = node.ints("pads", [0, 0, 0, 0])
        (stride_h, stride_w), (dilation_h, dilation_w) = node.ints("strides", [1, 1]), node.ints("dilations", [1, 1])
        kernel_h, kernel_w = weight.q.shape[2:]
        parameters: dict[int, Value] = {
            0: outputs, 1: kernel_w, 11: kernel_h, 2: dilation_w, 12: dilation_h, 3: stride_w, 13: stride_h, 4: left,
            14: top, 15: right, 16: bottom, 5: int(len(node.inputs) > 2), 6: weight.q.size,
        }  # fmt: skip
        if groups > 1:
            parameters[7] = groups
        self._integers(node, "ConvolutionDepthWise" if groups > 1 else "Convolution", weight, parameters, groups)

    def _product(self, node: Node) -> None:
        weight = self._weight(node, node.inputs[1])
        plain = float(node.attributes.get("alpha", 1.0)) == 1.0 and not node.attributes.get("transA")
        if self.graph.rank(node.inputs[0]) != 2 or weight.q.ndim != 2 or not plain:
            raise self._unsupported(node, "products have one vector and one weight here")
        if not node.attributes.get("transB"):
            weight = _Weight(weight.q.T, weight.scale)
        parameters: dict[int, Value] = {0: weight.q.shape[0], 1: int(len(node.inputs) > 2), 2: weight.q.size}
        self._integers(node, "InnerProduct", weight, parameters, 1)

    def _integers(self, node: Node, kind: str, weight: _Weight, parameters: dict[int, Value], groups: int) -> None:
        """A product: with integers where its input is quantized, else in float."""
        bias = [self._weight(node, node.inputs[2]).floats] if len(node.inputs) > 2 else []
        if node.inputs[0] not in self.quantized:
            self._layer(kind, node.name, [node.inputs[0]], node.outputs[0], parameters, [weight.floats, *bias])
            return
        blob, scale = self.quantized[node.inputs[0]]
        outputs = weight.q.shape[0]
        scales = np.broadcast_to(weight.scale.reshape(-1), (outputs,))
        if weight.q.dtype != np.int8 or weight.q.min(initial=0) < -127:
            raise self._unsupported(node, "weights have to be signed bytes without -128")
        if groups > 1:
            by_group = scales.reshape(groups, -1)
            if (by_group != by_group[:, :1]).any():
                raise self._unsupported(node, "ncnn has one scale for each group: keep the layer in float")
            scales = by_group[:, 0]
        factors = [np.asarray(np.float32(1) / scales, np.float32), np.full(1, np.float32(1) / scale, np.float32)]
        parameters[8] = 1 if kind == "ConvolutionDepthWise" else 2
        name = _name(node.outputs[0])
        self.layers.append(
            Layer(kind, _name(node.name), (blob,), (name,), parameters, [weight.q.reshape(-1), *bias, *factors])
        )
        self.blobs[node.outputs[0]] = name

    def _pool(self, node: Node) -> None:
        parameters: dict[int, Value] = {0: int(node.op != "MaxPool")}
        if node.op == "GlobalAveragePool":
            parameters[4] = 1
        else:
            (h, w), (down, right) = node.ints("kernel_shape", []), node.ints("strides", [1, 1])
            pads, other = node.ints("pads", [0, 0, 0, 0]), node.ints("dilations", [1, 1])
            if other != [1, 1] or node.attributes.get("ceil_mode", 0):
                raise self._unsupported(node, "pooling has neither dilations nor ceil_mode here")
            parameters |= {1: w, 11: h, 2: right, 12: down, 3: pads[1], 13: pads[0], 14: pads[3], 15: pads[2], 5: 1}
            parameters[6] = int(node.attributes.get("count_include_pad", 0))
        self._layer("Pooling", node.name, [node.inputs[0]], node.outputs[0], parameters)

    def _every(self, node: Node) -> None:
        """x[:, :, ::a, ::b] is a pooling with windows of one element; a slice of all is nothing."""
        given = [self.graph.constants[name] for name in node.inputs[1:] if name]
        starts, ends = given[0], given[1]
        axes = given[2] if len(given) > 2 else np.arange(len(starts))
        steps = given[3] if len(given) > 3 else np.ones(len(starts), np.int64)
        strides = {2: 1, 3: 1}
        for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
            if start != 0 or end < 1 << 30 or (step != 1 and int(axis) not in strides):
                raise self._unsupported(node, "slices take every n-th row and column here")
            strides |= {int(axis): int(step)} if step != 1 else {}
        if strides == {2: 1, 3: 1}:
            self.blobs[node.outputs[0]] = self._blob(node, node.inputs[0])
            return
        parameters: dict[int, Value] = {0: 0, 1: 1, 11: 1, 2: strides[3], 12: strides[2], 5: 1}
        self._layer("Pooling", node.name, [node.inputs[0]], node.outputs[0], parameters)

    def _pad(self, node: Node) -> None:
        pads = [int(v) for v in self.graph.constants[node.inputs[1]]]
        value = float(self._constant(node, 2)) if len(node.inputs) > 2 and node.inputs[2] else 0.0
        if len(pads) != 8 or pads[0] or pads[4] or node.attributes.get("mode", b"constant") != b"constant":
            raise self._unsupported(node, "padding is constant here, and of channels, rows and columns")
        parameters: dict[int, Value] = {
            0: pads[2], 1: pads[6], 2: pads[3], 3: pads[7], 4: 0, 5: value, 7: pads[1], 8: pads[5]
        }  # fmt: skip
        self._layer("Padding", node.name, [node.inputs[0]], node.outputs[0], parameters)

    def _layer(
        self,
        kind: str,
        name: str,
        inputs: list[str],
        output: str,
        parameters: dict[int, Value] | None = None,
        weights: list[np.ndarray] | None = None,
    ) -> None:
        blobs = tuple(self._named(x, name) for x in inputs)
        self.layers.append(Layer(kind, _name(name), blobs, (_name(output),), parameters or {}, weights or []))
        self.blobs[output] = _name(output)

    def _blob(self, node: Node, tensor: str) -> str:
        return self._named(tensor, node.name)

    def _named(self, tensor: str, reader: str) -> str:
        """The float blob of a tensor. Raises UnsupportedError where it is quantized, or a constant."""
        if tensor in self.blobs:
            return self.blobs[tensor]
        what = "a quantized tensor" if tensor in self.quantized else "a constant"
        raise UnsupportedError(f"ncnn: {reader} reads {what}, {tensor!r}: there is no such layer. Use the target ncnn")

    def _weight(self, node: Node, name: str) -> _Weight:
        if name in self.weights:
            return self.weights[name]
        if name in self.graph.constants and self.graph.constants[name].dtype == np.float32:
            return _Weight(self.graph.constants[name], np.ones((), np.float32))
        raise self._unsupported(node, f"its weight {name!r} is no constant")

    def _constant(self, node: Node, place: int) -> float:
        if len(node.inputs) <= place or node.inputs[place] not in self.graph.constants:
            raise self._unsupported(node, "its limits have to be constants")
        return float(self.graph.constants[node.inputs[place]].reshape(()))

    def _unsupported(self, node: Node, why: str) -> UnsupportedError:
        return UnsupportedError(f"ncnn: {node.name} ({node.op}): {why}")


def _name(text: str) -> str:
    """A name without spaces, as net.param has them."""
    return re.sub(r"\s", "_", text)
