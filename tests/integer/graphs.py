"""QDQ graphs in the form that isobit's exporter writes, built by hand with onnx.helper."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper


class QdqGraph:
    """Adds nodes one by one; every activation is quantized with its own scale and zero point."""

    def __init__(self, seed: int, *, dtype: type = np.uint8, zero_point: int | None = None) -> None:
        self.rng = np.random.default_rng(seed)
        self.dtype, self.fixed_zero_point = dtype, zero_point
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self.scales: dict[str, np.float32] = {}
        self.parameters: dict[str, list[str]] = {}
        self.count = 0

    def name(self, stem: str) -> str:
        self.count += 1
        return f"{stem}_{self.count}"

    def constant(self, stem: str, value: Any) -> str:
        name = self.name(stem)
        self.constants[name] = np.asarray(value)
        return name

    def node(self, op: str, inputs: Sequence[str], **attributes: Any) -> str:
        out = self.name(op.lower())
        self.nodes.append(helper.make_node(op, list(inputs), [out], name=f"node_{out}", **attributes))
        if op in ("Flatten", "Reshape", "Transpose", "Slice", "MaxPool") and inputs[0] in self.scales:
            self.scales[out] = self.scales[inputs[0]]
        return out

    def input(self, *shape: int | str, name: str = "x") -> str:
        self.inputs.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, list(shape)))
        return name

    def output(self, tensor: str) -> None:
        self.outputs.append(helper.make_tensor_value_info(tensor, onnx.TensorProto.FLOAT, None))

    def qdq(
        self,
        tensor: str,
        *,
        scale: float | None = None,
        zero_point: int | None = None,
        clip: tuple[int, int] | None = None,
        like: str | None = None,
    ) -> str:
        """QuantizeLinear → [Clip] → DequantizeLinear; draws a scale and a zero point where none is given."""
        if like is not None:
            s, z = (self.constants[n][()] for n in self.parameters[like])
        else:
            s = np.float32(self.rng.uniform(0.01, 0.08) if scale is None else scale)
            z = self.dtype(self.draw_zero_point() if zero_point is None else zero_point)
        names = [self.constant("scale", s), self.constant("zero_point", z)]
        quantized = self.node("QuantizeLinear", [tensor, *names])
        if clip is not None:
            low, high = (self.constant("limit", self.dtype(v)) for v in clip)
            quantized = self.node("Clip", [quantized, low, high])
        out = self.node("DequantizeLinear", [quantized, *names])
        self.scales[out] = np.float32(s)
        self.parameters[out] = names
        return out

    @property
    def lowest(self) -> int:
        """The lowest level."""
        return int(np.iinfo(self.dtype).min)

    def draw_zero_point(self) -> int:
        if self.fixed_zero_point is not None:
            return self.fixed_zero_point
        info = np.iinfo(self.dtype)
        return int(self.rng.integers(info.min, info.max + 1))

    def weight(
        self, shape: Sequence[int], *, axis: int | None = 0, low: int = -127, high: int = 127, dtype: type = np.int8
    ) -> tuple[str, np.ndarray]:
        """An integer initializer and DequantizeLinear; per channel along `axis`, or per tensor."""
        w = self.rng.integers(low, high + 1, shape).astype(dtype)
        size = () if axis is None else (shape[axis],)
        scale = np.asarray(self.rng.uniform(0.002, 0.02, size), dtype=np.float32)
        names = [self.constant("weight", w), self.constant("weight_scale", scale)]
        names.append(self.constant("weight_zero_point", np.zeros(size, dtype)))
        return self.node("DequantizeLinear", names, **({} if axis is None else {"axis": axis})), scale

    def bias(self, x: str, weight_scale: np.ndarray, channels: int, *, size: int = 20_000) -> str:
        """int32 at the scale of the input times that of the weight, as the exporter writes it."""
        b = self.rng.integers(-size, size + 1, channels).astype(np.int32)
        scale = (self.scales[x] * weight_scale).astype(np.float32)
        names = [self.constant("bias", b), self.constant("bias_scale", scale)]
        names.append(self.constant("bias_zero_point", np.zeros(scale.shape, np.int32)))
        return self.node("DequantizeLinear", names, **({} if scale.ndim == 0 else {"axis": 0}))

    def conv(
        self,
        x: str,
        cin: int,
        cout: int,
        kernel: Sequence[int] = (3, 3),
        *,
        group: int = 1,
        axis: int | None = 0,
        bias: bool = True,
        **attributes: Any,
    ) -> str:
        w, scale = self.weight((cout, cin // group, *kernel), axis=axis)
        inputs = [x, w] + ([self.bias(x, scale, cout)] if bias else [])
        return self.node("Conv", inputs, kernel_shape=list(kernel), group=group, **attributes)

    def crop(self, x: str) -> str:
        """Without the outermost row and column on each side."""
        names = [self.constant("index", np.array(v, np.int64)) for v in ([1, 1], [-1, -1], [2, 3])]
        return self.node("Slice", [x, *names])

    def gemm(self, x: str, cin: int, cout: int, *, axis: int | None = 0, bias: bool = True) -> str:
        w, scale = self.weight((cout, cin), axis=axis)
        return self.node("Gemm", [x, w] + ([self.bias(x, scale, cout)] if bias else []), transB=1)

    def model(self) -> onnx.ModelProto:
        initializers = [numpy_helper.from_array(np.asarray(v), n) for n, v in self.constants.items()]
        graph = helper.make_graph(self.nodes, "test", self.inputs, self.outputs, initializers)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
        model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
        onnx.checker.check_model(model)
        return model

    def save(self, path: Path) -> Path:
        onnx.save(self.model(), path)
        return path


def small_network(seed: int = 0, **kind: Any) -> QdqGraph:
    """conv-relu, depthwise, residual add, global pooling, gemm."""
    g = QdqGraph(seed, **kind)
    lowest = int(np.iinfo(g.dtype).min)
    x = g.qdq(g.input("batch", 3, 16, 16))
    a = g.qdq(g.node("Relu", [g.conv(x, 3, 8, pads=[1, 1, 1, 1])]), scale=0.05, zero_point=lowest)
    b = g.qdq(g.conv(a, 8, 8, group=8, pads=[1, 1, 1, 1]))
    c = g.qdq(g.node("Relu", [g.node("Add", [a, b])]), scale=0.05, zero_point=lowest)
    p = g.qdq(g.node("GlobalAveragePool", [c]))
    f = g.qdq(g.node("Flatten", [p], axis=1), like=p)
    y = g.gemm(f, 8, 5)
    g.output(g.qdq(y))
    return g
