"""What the parts of an ONNX graph have to satisfy before anything computes with them."""

from collections.abc import Mapping, Sequence
from math import prod

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from isobit.core.errors import ArtifactError

DIMENSION = (1 << 31) - 1
"""A size at most: engines count in 32 bits here and there."""

RANK = 32
"""Dimensions of a tensor at most; numpy has 64."""

NODES = 200_000
"""Ops of a graph at most, functions inlined."""

_WIDTHS = {
    "FLOAT": 32, "UINT8": 8, "INT8": 8, "UINT16": 16, "INT16": 16, "INT32": 32, "INT64": 64, "BOOL": 8, "FLOAT16": 16,
    "DOUBLE": 64, "UINT32": 32, "UINT64": 64, "COMPLEX64": 64, "COMPLEX128": 128, "BFLOAT16": 16, "FLOAT8E4M3FN": 8,
    "FLOAT8E4M3FNUZ": 8, "FLOAT8E5M2": 8, "FLOAT8E5M2FNUZ": 8, "UINT4": 4, "INT4": 4, "FLOAT4E2M1": 4,
    "FLOAT8E8M0": 8, "UINT2": 2, "INT2": 2,
}  # fmt: skip
BITS: Mapping[int, int] = {number: _WIDTHS[name] for name, number in TensorProto.DataType.items() if name in _WIDTHS}
"""Bits of an element by its ONNX type; texts have none."""

_FIELDS: Mapping[int, tuple[str, int]] = {
    TensorProto.FLOAT: ("float_data", 1), TensorProto.COMPLEX64: ("float_data", 2),
    TensorProto.DOUBLE: ("double_data", 1), TensorProto.COMPLEX128: ("double_data", 2),
    TensorProto.INT64: ("int64_data", 1), TensorProto.UINT32: ("uint64_data", 1),
    TensorProto.UINT64: ("uint64_data", 1),
}  # fmt: skip
_STORED = ("float_data", "double_data", "int32_data", "int64_data", "uint64_data", "string_data")
_RANGES: Mapping[int, tuple[int, int]] = {
    TensorProto.INT8: (-128, 127), TensorProto.UINT8: (0, 255), TensorProto.INT16: (-32768, 32767),
    TensorProto.UINT16: (0, 65535), TensorProto.BOOL: (0, 1),
}  # fmt: skip

_WINDOWS = frozenset(
    {"Conv", "ConvTranspose", "ConvInteger", "QLinearConv", "MaxPool", "AveragePool", "LpPool", "MaxUnpool", "Col2Im",
     "DeformConv", "QLinearAveragePool", "MaxRoiPool"}
)  # fmt: skip
_LOWEST = {"kernel_shape": 1, "strides": 1, "dilations": 1, "pads": 0, "output_padding": 0, "output_shape": 1,
           "group": 1, "blocksize": 1, "block_size": 0, "num_outputs": 1, "N": 1, "K": 1}  # fmt: skip


def check_tensor(tensor: TensorProto) -> None:
    """Raise ArtifactError where a tensor's sizes and its data do not belong together."""
    name = tensor.name or "of an attribute"
    if tensor.HasField("segment"):
        raise ArtifactError(f"the tensor {name} comes in segments, which no engine reads")
    if tensor.data_type not in BITS and tensor.data_type != TensorProto.STRING:
        raise ArtifactError(f"the tensor {name} has the unknown type {tensor.data_type}")
    if (wrong := next((size for size in tensor.dims if not 0 <= size <= DIMENSION), None)) is not None:
        raise ArtifactError(f"the tensor {name} has the size {wrong}")
    if len(tensor.dims) > RANK:
        raise ArtifactError(f"the tensor {name} has {len(tensor.dims)} dimensions, {RANK} are allowed")
    count = prod(tensor.dims)
    stored = [field for field in _STORED if len(getattr(tensor, field))]
    if tensor.data_type == TensorProto.STRING:
        expected, field = count, "string_data"
    elif tensor.HasField("raw_data") and (tensor.raw_data or not stored):
        if stored:
            raise ArtifactError(f"the tensor {name} holds its data twice")
        expected = (count * BITS[tensor.data_type] + 7) // 8
        if len(tensor.raw_data) != expected:
            shape = _shown(tensor.dims)
            raise ArtifactError(
                f"the tensor {name}, {shape}, needs {expected:,} bytes and has {len(tensor.raw_data):,}"
            )
        return
    else:
        field, each = _FIELDS.get(tensor.data_type, ("int32_data", 1))
        bits = BITS[tensor.data_type]
        expected = (count * bits + 7) // 8 if bits < 8 else count * each
    if any(other != field for other in stored) or len(getattr(tensor, field)) != expected:
        held = sum(len(getattr(tensor, f)) for f in stored)
        raise ArtifactError(f"the tensor {name}, {_shown(tensor.dims)}, needs {expected:,} numbers and has {held:,}")
    low, high = _RANGES.get(tensor.data_type, (0, 0))
    if tensor.data_type in _RANGES and count and not low <= min(tensor.int32_data) <= max(tensor.int32_data) <= high:
        kind = TensorProto.DataType.Name(tensor.data_type).lower()
        raise ArtifactError(f"the tensor {name} of {kind} holds numbers outside {low} to {high}")


def check_functions(model: onnx.ModelProto) -> None:
    """Raise ArtifactError where local functions call each other in a circle, or multiply to more ops than fit."""
    bodies = {(f.domain, f.name): [(n.domain, n.op_type) for n in f.node] for f in model.functions}
    sizes: dict[tuple[str, str], int] = {}
    for start, body in bodies.items():
        path = [(start, iter(body))]
        active = {start}
        sums = {start: 1}
        while path:
            function, calls = path[-1]
            called = next(calls, None)
            if called is None:
                path.pop()
                active.discard(function)
                sizes[function] = sums[function]
                if path:
                    sums[path[-1][0]] += sizes[function]
            elif called in active:
                raise ArtifactError(f"the local function {called[1]} calls itself")
            elif called in bodies and called not in sizes:
                path.append((called, iter(bodies[called])))
                active.add(called)
                sums[called] = 1
            else:
                sums[function] += sizes.get(called, 1)
    total = sum(sizes.get((n.domain, n.op_type), 1) for n in model.graph.node)
    if total > NODES:
        raise ArtifactError(f"its local functions make more than {NODES:,} ops of it")


def check_attributes(node: onnx.NodeProto) -> None:
    """Raise ArtifactError for windows, strides, pads and groups that no computation can have."""
    lists: dict[str, Sequence[int]] = {}
    for attribute in node.attribute:
        low = _LOWEST.get(attribute.name)
        if low is None or (attribute.name == "pads" and node.op_type not in _WINDOWS):
            continue
        values = [attribute.i] if attribute.type == onnx.AttributeProto.INT else list(attribute.ints)
        if (wrong := next((v for v in values if not low <= v <= DIMENSION), None)) is not None:
            raise ArtifactError(f"{node.name} ({node.op_type}) has {attribute.name} {wrong}, {low} or more is possible")
        lists[attribute.name] = values
    if node.op_type not in _WINDOWS or not (kernel := lists.get("kernel_shape")):
        return
    for key, times in (("strides", 1), ("dilations", 1), ("pads", 2)):
        if (have := lists.get(key)) and len(have) != times * len(kernel):
            raise ArtifactError(
                f"{node.name} ({node.op_type}) has {len(have)} {key} for a window of {len(kernel)} dimensions"
            )


def check_quantizers(graph: onnx.GraphProto) -> None:
    """Raise ArtifactError where a constant scale is no positive number, or scale and zero point do not fit."""
    constants = {t.name: t for t in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and (value := next((a for a in node.attribute if a.name == "value"), None)):
            constants[node.output[0]] = value.t
    for node in graph.node:
        for scale, zero_point in _quantizer_inputs(node):
            if scale in constants:
                _check_scale(node, constants[scale])
                if zero_point in constants:
                    _check_zero_point(node, constants[zero_point], constants[scale])


def _quantizer_inputs(node: onnx.NodeProto) -> list[tuple[str, str]]:
    """The names (scale, zero point) of every quantizer in a node."""
    names = [*node.input, *[""] * 9]
    match node.op_type:
        case "QuantizeLinear" | "DequantizeLinear":
            return [(names[1], names[2])]
        case "QLinearConv" | "QLinearMatMul":
            return [(names[1], names[2]), (names[4], names[5]), (names[6], names[7])]
        case "QLinearAdd" | "QLinearMul" | "QGemm":
            return [(names[1], names[2]), (names[4], names[5])]
        case _:
            return []


def _check_scale(node: onnx.NodeProto, scale: TensorProto) -> None:
    if scale.data_type not in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE):
        return
    values = numpy_helper.to_array(scale).astype(np.float64).reshape(-1)
    if not values.size:
        raise ArtifactError(f"{node.name} ({node.op_type}) has no scale in {scale.name}, a tensor without numbers")
    wrong = values[~(np.isfinite(values) & (values > 0))]
    if wrong.size:
        raise ArtifactError(
            f"{node.name} ({node.op_type}) has the scale {wrong[0]:g} ({scale.name}). A scale is a positive number"
        )


def _check_zero_point(node: onnx.NodeProto, zero_point: TensorProto, scale: TensorProto) -> None:
    if prod(zero_point.dims) != prod(scale.dims) and prod(zero_point.dims) != 1:
        raise ArtifactError(
            f"{node.name} ({node.op_type}) has {prod(scale.dims):,} scales and {prod(zero_point.dims):,} zero points"
        )


def _shown(dims: Sequence[int]) -> str:
    return " × ".join(str(size) for size in dims) or "a single number"
