"""LiteRT (TensorFlow Lite) files: the graph of the ONNX exporter, written as a flatbuffer with int8 tensors.

Format: schema version 3 of TensorFlow Lite, and its quantization specification: signed bytes, weights without a zero
point, int32 biases at s_x · s_w (https://ai.google.dev/edge/litert/models/quantization_spec).
"""

import json
from pathlib import Path
from typing import Any

import onnx

from isobit.core.arithmetic import XNNPACK
from isobit.core.errors import MissingExtraError, UnsupportedError
from isobit.core.files import atomic_path
from isobit.core.litert_file import SUFFIX, missing, serialized
from isobit.export.engine_format import EngineFormat
from isobit.export.litert_graph import Call, Translation, lowered, needed, static_shapes
from isobit.export.litert_ops import INTEGER, OPS
from isobit.integer.files import QUANTIZERS
from isobit.integer.model import Graph
from isobit.integer.plan import Plan
from isobit.integer.step import Step

MOVES = frozenset({"Flatten", "MaxPool", "Pad", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"})
"""Ops whose integers keep their scale."""


def litert_file() -> EngineFormat:
    """LiteRT's flatbuffer, net.tflite."""
    return EngineFormat(format="litert", suffix=SUFFIX, write=write_litert, check=_check)


def _check() -> None:
    if missing():
        raise MissingExtraError("LiteRT", "litert")


def write_litert(path: Path, source: onnx.ModelProto, metadata: dict[str, str]) -> None:
    """Write a QDQ graph as a LiteRT file; raises UnsupportedError, with the op's name."""
    data = serialized(translate(source, metadata))
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def translate(source: onnx.ModelProto, metadata: dict[str, str]) -> Any:
    """A QDQ graph as a `ModelT` of LiteRT's schema."""
    graph = Graph(source)
    plan = Plan(graph, XNNPACK)
    t = Translation(graph, plan, static_shapes(source))
    inputs = [t.input(name) for name in graph.inputs]
    wanted = needed(graph)
    for step in plan.steps:
        if id(step.node) in wanted:
            _write(t, step)
    outputs = [t.output(name) for name in graph.outputs]
    quantizers = [t.values[n.outputs[0]] for n in graph.nodes if n.op == "QuantizeLinear" and id(n) in wanted]
    places = [(v.name, v.channels_last, lowered(v.format)) for v in quantizers if v.format is not None]
    metadata = {**metadata, QUANTIZERS: json.dumps(places)}
    return t.builder.finish(inputs, outputs, json.dumps(metadata, sort_keys=True).encode())


def _write(t: Translation, step: Step) -> None:
    node = step.node
    match step.rule:
        case "constant":
            return
        case "quantize":
            assert step.output is not None
            t.quantize(t.operand(node.inputs[0], integer=True), step.result, step.output)
        case "dequantize":
            t.values[node.outputs[0]] = t.values[node.inputs[0]]
        case "integer":
            _integer(t, step)
        case "integers" if node.op in ("Clip", "Min"):
            _limits(t, step)
        case "travel" | "integers":
            _move(t, step)
        case "to_float" | "float":
            if _pads_integers(t, step):
                _move(t, step)
            else:
                _translator(step)(t, Call(node, node.outputs[0], bias=step.bias))
        case "looked_up":
            raise UnsupportedError(f"LiteRT: {node.name} looks activations up in a table; choose uniform levels")


def _integer(t: Translation, step: Step) -> None:
    """An op with integers in and out; through float where LiteRT has no such kernel for these formats."""
    assert step.output is not None
    node = step.node
    same = node.op != "AveragePool" or t.values[node.inputs[0]].format == step.output
    if node.op not in INTEGER or not same:
        y = _translator(step)(t, Call(node, node.outputs[0], bias=step.bias))
        t.quantize(y, step.result, step.output)
        return
    activation = t.activation(step)
    if activation == "LIMITS":
        raw = f"{step.result}/unlimited"
        t.shapes = {**t.shapes, raw: t.shape(node.outputs[0])}
        y = _translator(step)(t, Call(node, raw, step.output, bias=step.bias))
        t.limit(y, step.result, *step.limits)
        return
    fuses = node.op in ("Add", "Conv", "Gemm", "MatMul", "Mul")
    if activation != "NONE" and not fuses:
        raise UnsupportedError(f"LiteRT: {node.name} ({node.op}) does not take a {activation}")
    _translator(step)(t, Call(node, step.result, step.output, activation, step.bias))


def _limits(t: Translation, step: Step) -> None:
    """A Clip or Min on integers."""
    node = step.node
    value = t.values[node.inputs[0]]
    found = [t.graph.constants[name] if name else None for name in (*node.inputs[1:3], "", "")[:2]]
    if node.op == "Min":
        t.limit(value, node.outputs[0], None, found[0])
        return
    low, high = (None if x is None else float(x) for x in found)
    t.limit(value, node.outputs[0], low, high)


def _move(t: Translation, step: Step) -> None:
    node = step.node
    if node.op not in MOVES:
        raise UnsupportedError(f"LiteRT: {node.name} ({node.op}) has no form on integers")
    _translator(step)(t, Call(node, node.outputs[0], t.values[node.inputs[0]].format))


def _pads_integers(t: Translation, step: Step) -> bool:
    """Whether a Pad reads integers and is rounded to the same scale: zeros are on it, so the integers are padded."""
    node = step.node
    value = t.values.get(node.inputs[0])
    if node.op != "Pad" or value is None or value.format is None:
        return False
    reader = t.graph.only_reader(node.outputs[0])
    output = next((s.output for s in t.plan.steps if reader is not None and s.node is reader), None)
    return reader is not None and reader.op == "QuantizeLinear" and output == value.format


def _translator(step: Step) -> Any:
    if step.node.op not in OPS:
        raise UnsupportedError(f"LiteRT: {step.node.name} ({step.node.op}) has no form in a LiteRT file")
    return OPS[step.node.op]
