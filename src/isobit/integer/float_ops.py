"""Ops that stay in float32: exactly rounded ones, and approximations that no two engines compute alike."""

from collections.abc import Callable, Mapping

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx.reference import ReferenceEvaluator
from torch import Tensor

from isobit.core.errors import UnsupportedError
from isobit.core.onnx_file import first_line
from isobit.integer.low_bit import Inputs, dynamic_quantize, matmul_integer, matmul_nbits
from isobit.integer.model import Node
from isobit.integer.ops import max_pool
from isobit.integer.windows import window_counts, window_of, window_sums

EXACT = frozenset(
    {
        "Abs", "Add", "ArgMax", "ArgMin", "Cast", "Clip", "Concat", "ConstantOfShape", "DepthToSpace",
        "DequantizeLinear", "Div", "DynamicQuantizeLinear", "Equal", "Expand", "Flatten", "Gather", "GatherElements",
        "Greater", "Identity", "Less", "MatMulInteger", "Max", "MaxPool", "Min", "Mul", "Neg", "Not", "Pad",
        "QuantizeLinear", "Range", "ReduceMax", "ReduceMin", "Relu", "Reshape", "Shape", "Size", "Slice",
        "SpaceToDepth", "Split", "Squeeze", "Sub", "Tile", "Transpose", "Unsqueeze", "Where",
    }
)  # fmt: skip
"""Ops whose float32 result IEEE 754 fixes: they move or compare values, or round each result once."""


def evaluate(node: Node, inputs: Inputs, opset: int) -> list[Tensor]:
    """The outputs of `node` in float32. Ops without a rule here run in the ONNX reference evaluator."""
    if (low_bit := _LOW_BIT.get((node.proto.domain, node.op))) is not None:
        return low_bit(node, inputs)
    if node.proto.domain not in ("", "ai.onnx"):
        raise UnsupportedError(f"{node.name}: the op {node.proto.domain}.{node.op} is not known")
    if (rule := _RULES.get(node.op)) is not None and all(x is None or x.is_floating_point() for x in inputs[:1]):
        return [rule(node, inputs)]
    return _in_reference(node, inputs, opset)


def _in_reference(node: Node, inputs: Inputs, opset: int) -> list[Tensor]:
    proto = onnx.NodeProto()
    proto.CopyFrom(node.proto)
    feeds = {name: x.numpy() for name, x in zip(node.inputs, inputs, strict=True) if x is not None}
    values = [
        onnx.helper.make_tensor_value_info(n, onnx.helper.np_dtype_to_tensor_dtype(a.dtype), None)
        for n, a in feeds.items()
    ]
    outputs = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.UNDEFINED, None) for n in node.outputs if n]
    graph = onnx.helper.make_graph([proto], "one", values, outputs)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    try:
        found = ReferenceEvaluator(model).run(None, feeds)
    except Exception as error:
        raise UnsupportedError(f"{node.name}: the op {node.op} cannot be evaluated: {first_line(error)}") from error
    return [torch.from_numpy(np.ascontiguousarray(y)).reshape(np.shape(y)) for y in found]


def _conv(node: Node, inputs: Inputs) -> Tensor:
    x, w = _given(inputs[0]), _given(inputs[1])
    window = window_of(node, x.shape, w.shape[2:])
    padded = F.pad(x, window.torch_pads(x.dim()))
    conv = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[len(window.kernel)]
    bias = inputs[2] if len(inputs) > 2 else None
    return conv(padded, w, bias, window.strides, 0, window.dilations, int(node.attributes.get("group", 1)))


def _gemm(node: Node, inputs: Inputs) -> Tensor:
    a, b = _given(inputs[0]), _given(inputs[1])
    a = a.T if node.attributes.get("transA", 0) else a
    b = b.T if node.attributes.get("transB", 0) else b
    y = a @ b
    if (alpha := node.attributes.get("alpha", 1.0)) != 1.0:
        y = y * alpha
    if len(inputs) < 3 or inputs[2] is None:
        return y
    return y + inputs[2] * float(node.attributes.get("beta", 1.0))


def _softmax(node: Node, inputs: Inputs) -> Tensor:
    return _given(inputs[0]).softmax(int(node.attributes.get("axis", -1)))


def _layer_norm(node: Node, inputs: Inputs) -> Tensor:
    x = _given(inputs[0])
    axis = int(node.attributes.get("axis", -1)) % x.dim()
    bias = inputs[2] if len(inputs) > 2 else None
    return F.layer_norm(x, x.shape[axis:], inputs[1], bias, float(node.attributes.get("epsilon", 1e-5)))


def _gelu(node: Node, inputs: Inputs) -> Tensor:
    kind = node.attributes.get("approximate", b"none").decode()
    return F.gelu(_given(inputs[0]), approximate=kind)


def _max_pool(node: Node, inputs: Inputs) -> Tensor:
    x = _given(inputs[0])
    return max_pool(x, window_of(node, x.shape, node.ints("kernel_shape", [])))


def _average_pool(node: Node, inputs: Inputs) -> Tensor:
    x = _given(inputs[0])
    window = window_of(node, x.shape, node.ints("kernel_shape", []))
    return window_sums(x, window) / window_counts(x.shape, window)


def _reduce_mean(node: Node, inputs: Inputs) -> Tensor:
    x = _given(inputs[0])
    axes = node.ints("axes", []) or ([int(a) for a in _given(inputs[1])] if len(inputs) > 1 else [])
    if not axes and node.attributes.get("noop_with_empty_axes", 0):
        return x
    return x.mean(axes or list(range(x.dim())), keepdim=bool(node.attributes.get("keepdims", 1)))


def _given(x: Tensor | None) -> Tensor:
    assert x is not None
    return x


def _elementwise(function: Callable[..., Tensor]) -> Callable[[Node, Inputs], Tensor]:
    return lambda _, inputs: function(*(_given(x) for x in inputs))


def _clip(node: Node, inputs: Inputs) -> Tensor:
    low, high = clip_limits(node, inputs)
    return _given(inputs[0]).clamp(low, high)


def clip_limits(node: Node, inputs: Inputs) -> tuple[float | None, float | None]:
    """The limits of a Clip node, None where there is none."""
    given = [node.attributes.get("min"), node.attributes.get("max")]
    for i, x in enumerate(inputs[1:3]):
        given[i] = float(x) if x is not None else given[i]
    return given[0], given[1]


_LOW_BIT: Mapping[tuple[str, str], Callable[[Node, Inputs], list[Tensor]]] = {
    ("", "DynamicQuantizeLinear"): dynamic_quantize,
    ("", "MatMulInteger"): matmul_integer,
    ("com.microsoft", "MatMulNBits"): matmul_nbits,
}

_RULES: Mapping[str, Callable[[Node, Inputs], Tensor]] = {
    "Add": _elementwise(torch.add),
    "AveragePool": _average_pool,
    "Clip": _clip,
    "Conv": _conv,
    "Div": _elementwise(torch.div),
    "Erf": _elementwise(torch.erf),
    "Exp": _elementwise(torch.exp),
    "Gelu": _gelu,
    "Gemm": _gemm,
    "GlobalAveragePool": lambda _, inputs: _given(inputs[0]).mean(
        tuple(range(2, _given(inputs[0]).dim())), keepdim=True
    ),
    "HardSwish": _elementwise(F.hardswish),
    "LayerNormalization": _layer_norm,
    "MatMul": _elementwise(torch.matmul),
    "MaxPool": _max_pool,
    "Mul": _elementwise(torch.mul),
    "ReduceMean": _reduce_mean,
    "Relu": _elementwise(torch.relu),
    "Sigmoid": _elementwise(torch.sigmoid),
    "Softmax": _softmax,
    "Sqrt": _elementwise(torch.sqrt),
    "Sub": _elementwise(torch.sub),
    "Tanh": _elementwise(torch.tanh),
}
