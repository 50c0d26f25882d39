"""ONNX with quantized operators: QLinearConv and its like, for tools that take those in place of Q/DQ.

Each op whose inputs come from a DequantizeLinear and whose result, behind a ReLU that the lowest level is, goes to a
QuantizeLinear becomes one op on the integers: Conv to QLinearConv; Gemm, Add and GlobalAveragePool to QGemm, QLinearAdd
and QLinearGlobalAveragePool of ONNX Runtime's domain com.microsoft; what moves integers (Reshape, Transpose, MaxPool …)
reads them as they are. Others stay float between DequantizeLinear and QuantizeLinear, and a note names them. ONNX
Runtime computes from such a file what it computes from the Q/DQ one: it makes the same ops of that.

Sources: https://onnx.ai/onnx/operators/onnx__QLinearConv.html;
https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, final

import numpy as np
import onnx_ir as ir
from torch import Tensor, fx

from isobit.core.artifact import Artifact, own_metadata
from isobit.export.beside import check_places, write_beside
from isobit.export.float_network import MOVES
from isobit.export.linear_layers import forget_unused
from isobit.export.onnx_qdq import to_onnx
from isobit.export.tidy import tidy
from isobit.graph.convert import clamped_biases, convert, hash_integers
from isobit.graph.insert import preparation
from isobit.graph.names import names

DOMAIN = "com.microsoft"
INTEGER_MOVES = MOVES | {"MaxPool"}


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class OnnxQOperator:
    """Settings of the exporter for ONNX with quantized operators."""

    format: str = "onnx-qoperator"

    def export(
        self,
        model: fx.GraphModule,
        path: str | Path,
        *,
        example: tuple[Tensor, ...],
        metadata: dict[str, str] | None = None,
    ) -> Artifact:
        """Write the file; raises UnsupportedError or OutputError."""
        path = Path(path)
        check_places(path, [])
        deployed = convert(model)
        program = to_onnx(deployed, example)
        tidy(program, layers=set(names(model.graph).values()))
        left = write_quantized_operators(program)
        held = own_metadata(
            metadata, target=preparation(model).profile.name, integers_sha256=hash_integers(deployed),
            format=self.format,
        )  # fmt: skip
        notes = [*clamped_biases(deployed), *([f"between float tensors: {', '.join(left)}"] if left else [])]
        return write_beside(program, path, {}, format=self.format, opset=None, metadata=held, notes=notes)


class Integers(NamedTuple):
    """A tensor of integers, and its scale and zero point."""

    q: ir.Value
    scale: ir.Value
    zero_point: ir.Value


def write_quantized_operators(program: ir.Model) -> list[str]:
    """Replace what has a form on integers, in place; the names of the layers and additions that have none."""
    graph = program.graph
    for node in list(graph):
        writer = _WRITERS.get(node.op_type)
        if node.op_type in INTEGER_MOVES:
            _move(graph, node)
        elif writer is not None:
            _write(graph, node, writer)
    program.opset_imports[DOMAIN] = 1
    return [str(node.name) for node in graph if node.op_type in _WRITERS]


Writer = Callable[[ir.Node, list[Integers], Integers | None], ir.Node | None]


def _write(graph: ir.Graph, node: ir.Node, writer: Writer) -> None:
    found = [_dequantized(value) for value in node.inputs if value is not None]
    if not found or any(f is None for f in found):
        return
    ends = _quantized(node)
    new = writer(node, [f for f in found if f is not None], ends.integers if ends else None)
    if new is None:
        return
    old = ends.quantize.outputs[0] if ends and ends.integers else node.outputs[0]
    new.name, result = str(node.name), new.outputs[0]
    graph.insert_before(node, new)
    result.type, result.shape = old.type, node.outputs[0].shape
    old.replace_all_uses_with(result, replace_graph_outputs=True)
    result.name = str(old.name)
    gone = [ends.quantize, *ends.between] if ends and ends.integers else []
    sources = [value.producer() for value in node.inputs if value is not None]
    forget_unused(graph, [*gone, node, *dict.fromkeys(s for s in sources if s is not None)])


class _End(NamedTuple):
    """The QuantizeLinear behind an op, and what stands between the two, last first."""

    quantize: ir.Node
    between: list[ir.Node]
    integers: Integers | None


def _quantized(node: ir.Node) -> _End | None:
    """The end of an op whose result is rounded before anything reads it; ReLU and Clip may stand in between where
    saturation does the same."""
    between: list[ir.Node] = []
    value = node.outputs[0]
    while len(value.uses()) == 1 and not value.is_graph_output():
        ((reader, _),) = value.uses()
        if reader.op_type == "QuantizeLinear":
            target = Integers(value, _given(reader.inputs[1]), _given(reader.inputs[2]))
            if all(_saturates(b, target) for b in between):
                return _End(reader, between, target)
            return None
        if reader.op_type not in ("Relu", "Clip"):
            return None
        between.insert(0, reader)
        value = reader.outputs[0]
    return None


def _saturates(node: ir.Node, target: Integers) -> bool:
    """Whether the integers' own ends do what a ReLU or a Clip does."""
    scale, zero_point = (_array(value) for value in (target.scale, target.zero_point))
    ends = np.iinfo(zero_point.dtype)
    lowest, highest = ((int(end) - int(zero_point)) * float(scale) for end in (ends.min, ends.max))
    if node.op_type == "Relu":
        return lowest == 0
    low, high = (_array(value) for value in node.inputs[1:3])
    return lowest >= float(low) and highest <= float(high)


def _conv(node: ir.Node, inputs: list[Integers], end: Integers | None) -> ir.Node | None:
    x, w, *bias = inputs
    if end is None or not _one_kind([x, end]):
        return None
    values = [*x, *w, end.scale, end.zero_point, *(b.q for b in bias)]
    return ir.node("QLinearConv", values, attributes=dict(node.attributes))


def _gemm(node: ir.Node, inputs: list[Integers], end: Integers | None) -> ir.Node | None:
    x, w, *bias = inputs
    if end is not None and not _one_kind([x, end]):
        return None
    values: list[ir.Value | None] = [*x, *w, bias[0].q if bias else None]
    values += [end.scale, end.zero_point] if end else []
    kept = {k: v for k, v in node.attributes.items() if k in ("transA", "transB", "alpha")}
    return ir.node("QGemm", values, attributes=kept, domain=DOMAIN)


def _add(_node: ir.Node, inputs: list[Integers], end: Integers | None) -> ir.Node | None:
    if end is None or len(inputs) != 2 or not _one_kind([*inputs, end]):
        return None
    return ir.node("QLinearAdd", [*inputs[0], *inputs[1], end.scale, end.zero_point], domain=DOMAIN)


def _pool(_node: ir.Node, inputs: list[Integers], end: Integers | None) -> ir.Node | None:
    if end is None or not _one_kind([inputs[0], end]):
        return None
    values = [*inputs[0], end.scale, end.zero_point]
    return ir.node("QLinearGlobalAveragePool", values, attributes={"channels_last": 0}, domain=DOMAIN)


_WRITERS: Mapping[str, Writer] = {"Conv": _conv, "Gemm": _gemm, "Add": _add, "GlobalAveragePool": _pool}


def _one_kind(tensors: list[Integers]) -> bool:
    """Whether all are signed or all unsigned: ONNX Runtime's kernels have one type for what goes in and comes out."""
    return len({_array(t.zero_point).dtype for t in tensors}) == 1


def _move(graph: ir.Graph, node: ir.Node) -> None:
    """Let an op that moves or selects values do so with integers: its result is dequantized, or rounded to the same
    grid and then needs neither."""
    x, end = _dequantized(_given(node.inputs[0])), _quantized(node)
    if x is None:
        return
    if end is None or end.integers is None or end.between:
        _dequantize_behind(graph, node, x)
        return
    grids = [(x.scale, end.integers.scale), (x.zero_point, end.integers.zero_point)]
    if any(not np.array_equal(_array(a), _array(b)) for a, b in grids) or not _one_kind([x, end.integers]):
        return
    before = _given(node.inputs[0]).producer()
    node.replace_input_with(0, x.q)
    result, old = node.outputs[0], end.quantize.outputs[0]
    result.type = x.q.type or old.type
    old.replace_all_uses_with(result, replace_graph_outputs=True)
    graph.remove(end.quantize, safe=True)
    forget_unused(graph, [before] if before is not None else [])


def _dequantize_behind(graph: ir.Graph, node: ir.Node, x: Integers) -> None:
    before, result = _given(node.inputs[0]).producer(), node.outputs[0]
    dequantize = ir.node("DequantizeLinear", [result, x.scale, x.zero_point], name=f"{node.name}.DequantizeLinear")
    behind = dequantize.outputs[0]
    behind.type, behind.shape, name = result.type, result.shape, str(result.name)
    for reader, index in list(result.uses()):
        if reader is not dequantize:
            reader.replace_input_with(index, behind)
    if result.is_graph_output():
        graph.outputs[list(graph.outputs).index(result)] = behind
    node.replace_input_with(0, x.q)
    graph.insert_after(node, dequantize)
    result.name, behind.name = f"{name}.q", name
    result.type = ir.TensorType(ir.DataType.INT8 if _array(x.zero_point).dtype == np.int8 else ir.DataType.UINT8)
    forget_unused(graph, [before] if before is not None else [])


def _dequantized(value: ir.Value) -> Integers | None:
    """The integers behind a tensor that comes from a DequantizeLinear."""
    node = value.producer()
    if node is None or node.op_type != "DequantizeLinear" or len(node.inputs) != 3:
        return None
    q, scale, zero_point = (_given(v) for v in node.inputs)
    return Integers(q, scale, zero_point)


def _array(value: ir.Value | None) -> np.ndarray:
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    assert tensor is not None
    found: np.ndarray = tensor.numpy()
    return found


def _given(value: ir.Value | None) -> ir.Value:
    assert value is not None
    return value
