"""Older opsets of ONNX, which vendors' converters read."""

import contextlib
from collections.abc import Iterator

import onnx
import onnx_ir as ir
from onnx import version_converter

IR_VERSIONS = {11: 6, 13: 7, 17: 8}
"""The version of the file format that came with an opset: https://onnx.ai/onnx/repo-docs/Versioning.html."""

CHANGED = {"Softmax": 13, "LogSoftmax": 13, "Hardmax": 13, "AveragePool": 19}
"""Ops that meant something else before this opset with the same inputs and attributes: softmax flattened the other
axes, and an average pool with `ceil_mode` counted differently. What else came since 11 are types, inputs and
attributes, which the checker finds."""


def at_opset(program: ir.Model, opset: int | None) -> tuple[ir.Model, tuple[str, ...]]:
    """A network in an older opset, where every op has a form in it; else as it is, with a note."""
    present = program.opset_imports.get("", 0)
    if opset is None or opset >= present:
        return program, ()
    reasons = []
    for start in _starts(ir.to_proto(program), opset):
        try:
            lowered = _relabelled(start, opset)
            onnx.checker.check_model(lowered, full_check=True)
            return ir.from_proto(lowered), ()
        except (RuntimeError, onnx.checker.ValidationError) as error:
            reasons.append(_reason(error))
    return program, (f"the file has ONNX opset {present}, not {opset}: {reasons[-1]}",)


def _starts(proto: onnx.ModelProto, opset: int) -> Iterator[onnx.ModelProto]:
    """What ONNX's own converter makes, which stops at ops that it has no rule for; then the network itself."""
    with contextlib.suppress(RuntimeError):
        yield version_converter.convert_version(proto, max(opset, 17))
    yield proto


def _relabelled(proto: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    for node in proto.graph.node:
        if opset < CHANGED.get(node.op_type, 0) and _is_concerned(node):
            raise RuntimeError(f"{node.op_type} was another op then")
        for attribute in list(node.attribute):
            if node.op_type == "Reshape" and attribute.name == "allowzero":  # no shape that is exported holds a 0
                node.attribute.remove(attribute)
    for entry in proto.opset_import:
        if entry.domain == "":
            entry.version = opset
    proto.ir_version = min(proto.ir_version, IR_VERSIONS.get(opset, proto.ir_version))
    return proto


def _is_concerned(node: onnx.NodeProto) -> bool:
    return node.op_type != "AveragePool" or any(a.name == "ceil_mode" and a.i for a in node.attribute)


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return lines[0].rsplit(": ", 1)[-1].rstrip(".")
