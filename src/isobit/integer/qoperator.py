"""ONNX with quantized operators (QLinearConv, QGemm, …) as the QDQ graph that they mean.

ONNX Runtime's quantizer writes such files with `QuantFormat.QOperator`. Each operator becomes DequantizeLinear in front
of the plain op and QuantizeLinear behind it, which writes the tensor of the same name; what stands on integers between
them, such as MaxPool, stays. Sources: https://onnx.ai/onnx/operators/onnx__QLinearConv.html,
https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, final

import numpy as np
import onnx
from onnx import helper, numpy_helper

from isobit.core.arithmetic import Arithmetic
from isobit.core.errors import ArtifactError, UnsupportedError

Names = Sequence[str]


class Form(NamedTuple):
    """A quantized operator: the plain op, how many of its inputs are quantized, and which attributes it keeps.

    Each of those has three inputs: integers, scale and zero point. `bias` says that int32 at s_x · s_w may follow,
    `bias_last` that it stands behind the scale and zero point of the result, `result_first` that these come first.
    """

    op: str
    quantized: int
    attributes: tuple[str, ...] = ()
    bias: bool = False
    bias_last: bool = False
    result_first: bool = False


_WINDOW = ("auto_pad", "ceil_mode", "count_include_pad", "dilations", "kernel_shape", "pads", "strides")
FORMS: Mapping[str, Form] = {
    "QGemm": Form("Gemm", 2, ("alpha", "transA", "transB"), bias=True),
    "QLinearAdd": Form("Add", 2),
    "QLinearAveragePool": Form("AveragePool", 1, _WINDOW),
    "QLinearConcat": Form("Concat", 0, ("axis",), result_first=True),
    "QLinearConv": Form("Conv", 2, (*_WINDOW, "group"), bias=True, bias_last=True),
    "QLinearGlobalAveragePool": Form("GlobalAveragePool", 1),
    "QLinearLeakyRelu": Form("LeakyRelu", 1, ("alpha",)),
    "QLinearMatMul": Form("MatMul", 2),
    "QLinearMul": Form("Mul", 2),
    "QLinearSigmoid": Form("Sigmoid", 1),
    "QLinearSoftmax": Form("Softmax", 1, ("axis",)),
}
"""The quantized operators of ONNX and of ONNX Runtime's domain com.microsoft."""


_MARK = "quantized operators"


def has_quantized_operators(model: onnx.ModelProto) -> bool:
    """Whether a file has operators on integers in place of Q/DQ."""
    return any(_quantized(node) for node in model.graph.node)


def qdq_of_qoperators(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph of a file with quantized operators, with QuantizeLinear and DequantizeLinear.

    Raises UnsupportedError, with its name, for an operator that has no rule.
    """
    reading = _Reading(model)
    for node in model.graph.node:
        if _quantized(node):
            reading.operator(node)
        else:
            reading.nodes.append(node)
    found = onnx.ModelProto()
    found.CopyFrom(model)
    del found.graph.node[:]
    del found.graph.value_info[:]
    found.graph.node.extend(reading.nodes)
    found.graph.initializer.extend(reading.initializers)
    found.metadata_props.add(key=_MARK, value="read as Q/DQ")
    return found


def rules_for(model: onnx.ModelProto, arithmetic: Arithmetic) -> Arithmetic:
    """The engine's rules for a file: signed bytes stay as they are in quantized operators, and have twins in Q/DQ.

    Measured on ONNX Runtime: ties of QLinearAdd fall otherwise.
    """
    read = any(entry.key == _MARK for entry in model.metadata_props)
    return replace(arithmetic, twins=False) if read else arithmetic


def _quantized(node: onnx.NodeProto) -> bool:
    return node.op_type.startswith("QLinear") or node.op_type in ("QGemm", "ConvInteger")


@final
class _Reading:
    """The nodes and constants so far."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.constants = {t.name: t for t in model.graph.initializer}
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def operator(self, node: onnx.NodeProto) -> None:
        """One quantized operator."""
        form = FORMS.get(node.op_type)
        name = node.name or node.output[0]
        if form is None:
            known = ", ".join(FORMS)
            raise UnsupportedError(f"{name}: the quantized operator {node.op_type} has no rule here; those are {known}")
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if attributes.get("channels_last"):
            raise UnsupportedError(f"{name} ({node.op_type}) has its channels last, for which there is no rule here")
        operands, bias, result = self._split(node, form, name)
        first = form.op == "Conv" or bool(attributes.get("transB"))
        values = [self._dequantized(x, name, place, first=first) for place, x in enumerate(operands)]
        if bias:
            values.append(self._bias(bias, operands, name))
        kept = {k: v for k, v in attributes.items() if k in form.attributes}
        plain = f"{name}/{form.op}" if result else node.output[0]
        self.nodes.append(helper.make_node(form.op, values, [plain], name=name, **kept))
        if result:
            self.nodes.append(
                helper.make_node("QuantizeLinear", [plain, *result], [node.output[0]], name=f"{name}/quantize")
            )

    def _split(self, node: onnx.NodeProto, form: Form, name: str) -> tuple[list[Names], str, Names]:
        """The quantized inputs, the bias, and the scale and zero point of the result."""
        inputs = list(node.input)
        result: Names = []
        if form.result_first:
            result, inputs = _named(inputs[:2]), inputs[2:]
        count = form.quantized or len(inputs) // 3
        if len(inputs) < 3 * count or (form.quantized == 0 and len(inputs) % 3):
            raise ArtifactError(f"{name} ({node.op_type}) has {len(node.input)} inputs, which is not possible")
        operands = [_named(inputs[3 * i : 3 * i + 3]) for i in range(count)]
        rest, bias = inputs[3 * count :], ""
        if form.bias and form.bias_last:
            result, bias = _named(rest[:2]), (rest[2] if len(rest) > 2 else "")
        elif form.bias:
            bias, result = (rest[0] if rest else ""), _named(rest[1:3])
        elif not form.result_first:
            result = _named(rest[:2])
        if not result and node.op_type != "QGemm":
            raise ArtifactError(f"{name} ({node.op_type}) has no scale of its result")
        return operands, bias, result

    def _dequantized(self, operand: Names, name: str, place: int, *, first: bool) -> str:
        value = f"{name}/input{place}"
        axis: dict[str, Any] = {}
        scale = self._constant(operand[1])
        if scale is not None and scale.size > 1:  # a weight: output channels first, or last
            axis = {"axis": 0 if first else self._last_axis(operand[0])}
        self.nodes.append(helper.make_node("DequantizeLinear", list(operand), [value], name=value, **axis))
        return value

    def _bias(self, bias: str, operands: Sequence[Names], name: str) -> str:
        """int32 at the scale of the sum, s_x · s_w."""
        scales = [self._constant(x[1]) for x in operands[:2]]
        if scales[0] is None or scales[1] is None:
            raise UnsupportedError(f"{name}: the scales beside a bias have to be constants")
        scale = np.asarray(scales[0].reshape(()) * scales[1], np.float32)
        scale = scale.reshape(()) if scale.size == 1 else scale.reshape(-1)
        parts = {"bias_scale": scale, "bias_zero_point": np.zeros(scale.shape, np.int32)}
        for word, data in parts.items():
            self.initializers.append(numpy_helper.from_array(data, f"{name}/{word}"))
        value = f"{name}/bias"
        axis: dict[str, Any] = {"axis": 0} if scale.ndim else {}
        names = [bias, *(f"{name}/{word}" for word in parts)]
        self.nodes.append(helper.make_node("DequantizeLinear", names, [value], name=value, **axis))
        return value

    def _constant(self, name: str) -> np.ndarray | None:
        return numpy_helper.to_array(self.constants[name]) if name in self.constants else None

    def _last_axis(self, name: str) -> int:
        return len(self.constants[name].dims) - 1 if name in self.constants else -1


def _named(inputs: Names) -> Names:
    """The inputs without those that are left out at the end."""
    return [x for x in inputs if x]
