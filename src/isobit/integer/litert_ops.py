"""What each op of LiteRT means, in nodes of a QDQ graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from isobit.core.errors import UnsupportedError
from isobit.integer.litert_moves import (
    arg_max,
    blocks,
    cast,
    concat,
    first,
    gather,
    last,
    pack,
    pad,
    plain,
    reshape,
    resize,
    shape,
    slice_of_size,
    split,
    strided_slice,
    to_shape_of_result,
    transpose,
)
from isobit.integer.values import Constant

if TYPE_CHECKING:
    from isobit.integer.litert import Reading

Reader = Callable[["Reading", Any], None]


def _conv(r: Reading, op: Any) -> None:
    options, (x, w) = op.builtinOptions, op.inputs[:2]
    depthwise = hasattr(options, "depthMultiplier")
    data = r.fixed(w)
    turned = data.transpose(3, 0, 1, 2) if depthwise else data.transpose(0, 3, 1, 2)
    channels = r.graph.tensors[x].shape[3]
    groups = int(channels) if depthwise else int(channels) // int(turned.shape[1])
    inputs = [first(r, r.operand(x)), r.constant(w, turned, 0, "/channels_first")]
    inputs += _bias(r, op)
    y = r.names[op.outputs[0]]
    r.add(
        "Conv", inputs, f"{y}/conv", name=y, group=groups, strides=[options.strideH, options.strideW],
        dilations=[options.dilationHFactor, options.dilationWFactor], **_padding(options),
    )  # fmt: skip
    r.store(last(r, _activated(r, f"{y}/conv", options)), op.outputs[0])


def _fully_connected(r: Reading, op: Any) -> None:
    options, (x, w) = op.builtinOptions, op.inputs[:2]
    data = r.fixed(w)
    value, y = r.operand(x), r.names[op.outputs[0]]
    if r.rank(x) != 2 and not options.keepNumDims:
        shape = r.initializer(f"{y}/rows", np.array([-1, data.shape[1]], np.int64))
        value = r.add("Reshape", [value, shape], f"{y}/matrix")
    if r.rank(x) == 2 or not options.keepNumDims:
        result = r.add("Gemm", [value, r.constant(w, data), *_bias(r, op)], f"{y}/product", name=y, transB=1)
    else:
        turned = r.constant(w, np.ascontiguousarray(data.T), 1, "/turned")
        result = r.add("MatMul", [value, turned], f"{y}/product", name=y)
        if bias := _bias(r, op):
            result = r.add("Add", [result, *bias], f"{y}/shifted")
    r.store(_activated(r, result, options), op.outputs[0])


def _squared_difference(r: Reading, op: Any) -> None:
    y = r.names[op.outputs[0]]
    apart = r.add("Sub", [r.operand(i) for i in op.inputs], f"{y}/difference")
    r.store(r.add("Mul", [apart, apart], f"{y}/squared", name=y), op.outputs[0])


def _batch_matmul(r: Reading, op: Any) -> None:
    values = [r.operand(i) for i in op.inputs[:2]]
    for i, turned in enumerate((op.builtinOptions.adjX, op.builtinOptions.adjY)):
        if turned:
            order = [*range(r.rank(op.inputs[i]) - 2), r.rank(op.inputs[i]) - 1, r.rank(op.inputs[i]) - 2]
            values[i] = r.add("Transpose", [values[i]], f"{r.names[op.outputs[0]]}/turned{i}", perm=order)
    plain(r, op, "MatMul", values)


def _binary(kind: str) -> Reader:
    def read(r: Reading, op: Any) -> None:
        y = r.names[op.outputs[0]]
        result = r.add(kind, [r.operand(i) for i in op.inputs], f"{y}/{kind.lower()}", name=y)
        r.store(_activated(r, result, op.builtinOptions), op.outputs[0])

    return read


def _unary(kind: str, **attributes: Any) -> Reader:
    """A function of each element, or along the last dimension."""

    def read(r: Reading, op: Any) -> None:
        y = r.names[op.outputs[0]]
        value = r.operand(op.inputs[0])
        own = {"alpha": float(op.builtinOptions.alpha)} if kind == "LeakyRelu" else {}
        r.store(r.add(kind, [value], f"{y}/{kind.lower()}", name=y, **attributes, **own), op.outputs[0])

    return read


def _relu(high: float | None) -> Reader:
    def read(r: Reading, op: Any) -> None:
        y = r.names[op.outputs[0]]
        limits = [r.initializer("limit_0", np.zeros((), np.float32))]
        limits += [] if high is None else [r.initializer(f"limit_{high:g}", np.array(high, np.float32))]
        r.store(r.add("Clip", [r.operand(op.inputs[0]), *limits], f"{y}/relu", name=y), op.outputs[0])

    return read


def _pool(kind: str) -> Reader:
    def read(r: Reading, op: Any) -> None:
        options, y = op.builtinOptions, r.names[op.outputs[0]]
        value = first(r, r.operand(op.inputs[0]))
        r.add(
            kind, [value], f"{y}/pool", name=y, kernel_shape=[options.filterHeight, options.filterWidth],
            strides=[options.strideH, options.strideW], **_padding(options),
        )  # fmt: skip
        r.store(last(r, _activated(r, f"{y}/pool", options)), op.outputs[0])

    return read


def _reduce(kind: str) -> Reader:
    def read(r: Reading, op: Any) -> None:
        y = r.names[op.outputs[0]]
        axes = sorted(int(a) % r.rank(op.inputs[0]) for a in r.fixed(op.inputs[1]).reshape(-1))
        keep = bool(op.builtinOptions.keepDims)
        if kind == "ReduceMean" and r.rank(op.inputs[0]) == 4 and axes == [1, 2] and keep:
            value = first(r, r.operand(op.inputs[0]))
            r.store(last(r, r.add("GlobalAveragePool", [value], f"{y}/mean", name=y)), op.outputs[0])
            return
        names = [r.operand(op.inputs[0]), r.initializer(f"{y}/axes", np.array(axes, np.int64))]
        r.store(r.add(kind, names, f"{y}/reduced", name=y, keepdims=int(keep)), op.outputs[0])

    return read


def _quantize(r: Reading, op: Any) -> None:
    value = r.operand(op.inputs[0])
    r.store(value, op.outputs[0])


def _dequantize(r: Reading, op: Any) -> None:
    x, y = op.inputs[0], op.outputs[0]
    if (data := r.data(x)) is not None:  # a weight alone was quantized, or halved to float16
        found = r.quantization(x)
        if found is not None:
            axis = int(r.graph.tensors[x].quantization.quantizedDimension)
            scale, zero_point = found
            data = Constant(data, scale, zero_point, axis).floats
        r.floats[y] = data.astype(np.float32)
    elif y in list(r.graph.outputs):
        r.add("DequantizeLinear", [r.names[x], *r._scales(x)], r.names[y])
    else:
        r.add("Identity", [r.view(x)], r.names[y])


def _softmax(r: Reading, op: Any) -> None:
    if op.builtinOptions.beta != 1.0:
        raise UnsupportedError(
            f"{r.names[op.outputs[0]]}: a SOFTMAX with beta {op.builtinOptions.beta} has no rule here"
        )
    _unary("Softmax", axis=-1)(r, op)


def _rsqrt(r: Reading, op: Any) -> None:
    y = r.names[op.outputs[0]]
    root = r.add("Sqrt", [r.operand(op.inputs[0])], f"{y}/sqrt")
    one = r.initializer("one", np.ones((), np.float32))
    r.store(r.add("Div", [one, root], f"{y}/rsqrt", name=y), op.outputs[0])


def _gelu(r: Reading, op: Any) -> None:
    _unary("Gelu", approximate="tanh" if op.builtinOptions.approximate else "none")(r, op)


def _not_equal(r: Reading, op: Any) -> None:
    y = r.names[op.outputs[0]]
    same = r.add("Equal", [r.operand(i) for i in op.inputs], f"{y}/equal")
    plain(r, op, "Not", [same])


def _bias(r: Reading, op: Any) -> list[str]:
    """The bias where there is one; integers without a scale have that of the sum, s_x · s_w."""
    if len(op.inputs) < 3 or op.inputs[2] < 0:
        return []
    x, w, bias = op.inputs[:3]
    data = r.data(bias)
    if data is None or data.dtype.kind == "f" or r.quantization(bias) is not None:
        return [r.operand(bias)]
    grids = [r.quantization(i) for i in (x, w)]
    if grids[0] is None or grids[1] is None:
        raise UnsupportedError(f"{r.names[bias]}: integers without a scale have no value beside float operands")
    scale = np.asarray(grids[0][0] * grids[1][0], np.float32)
    name = f"{r.names[op.outputs[0]]}/bias"
    zeros = np.zeros(scale.size, data.dtype)
    parts = {"integers": data, "scale": scale, "zero_point": zeros}
    return [r.add("DequantizeLinear", [r.initializer(f"{name}/{k}", v) for k, v in parts.items()], name, axis=0)]


def _padding(options: Any) -> dict[str, Any]:
    return {"auto_pad": "SAME_UPPER" if options.padding == 0 else "VALID"}


def _activated(r: Reading, value: str, options: Any) -> str:
    """The activation that an op applies to its result."""
    kind = int(getattr(options, "fusedActivationFunction", 0))
    if kind == 0:
        return value
    if kind not in _LIMITS:
        raise UnsupportedError(f"{value}: the activation {kind} of an op has no rule here")
    limits = [
        "" if bound is None else r.initializer(f"limit_{bound:g}", np.array(bound, np.float32))
        for bound in _LIMITS[kind]
    ]
    return r.add("Clip", [value, *limits], f"{value}/clip")


_LIMITS = {1: (0.0, None), 2: (-1.0, 1.0), 3: (0.0, 6.0), 6: (0.0, 1.0)}

READERS: Mapping[str, Reader] = {
    "ADD": _binary("Add"),
    "ARG_MAX": arg_max,
    "AVERAGE_POOL_2D": _pool("AveragePool"),
    "BATCH_MATMUL": _batch_matmul,
    "CAST": cast,
    "CONCATENATION": concat,
    "CONV_2D": _conv,
    "DEPTHWISE_CONV_2D": _conv,
    "DEPTH_TO_SPACE": blocks("DepthToSpace"),
    "DEQUANTIZE": _dequantize,
    "DIV": _binary("Div"),
    "ELU": _unary("Elu"),
    "EXPAND_DIMS": to_shape_of_result,
    "FULLY_CONNECTED": _fully_connected,
    "GATHER": gather,
    "GELU": _gelu,
    "HARD_SWISH": _unary("HardSwish"),
    "LEAKY_RELU": _unary("LeakyRelu"),
    "LOGISTIC": _unary("Sigmoid"),
    "MAXIMUM": _binary("Max"),
    "MAX_POOL_2D": _pool("MaxPool"),
    "MEAN": _reduce("ReduceMean"),
    "MINIMUM": _binary("Min"),
    "MUL": _binary("Mul"),
    "NOT_EQUAL": _not_equal,
    "PACK": pack,
    "PAD": pad,
    "PADV2": pad,
    "QUANTIZE": _quantize,
    "REDUCE_MAX": _reduce("ReduceMax"),
    "REDUCE_PROD": _reduce("ReduceProd"),
    "RELU": _relu(None),
    "RELU6": _relu(6.0),
    "RESHAPE": reshape,
    "RESIZE_BILINEAR": resize("linear"),
    "RESIZE_NEAREST_NEIGHBOR": resize("nearest"),
    "RSQRT": _rsqrt,
    "SELECT_V2": _binary("Where"),
    "SHAPE": shape,
    "SLICE": slice_of_size,
    "SOFTMAX": _softmax,
    "SPACE_TO_DEPTH": blocks("SpaceToDepth"),
    "SPLIT": split,
    "SQUEEZE": to_shape_of_result,
    "SQRT": _unary("Sqrt"),
    "SQUARED_DIFFERENCE": _squared_difference,
    "STRIDED_SLICE": strided_slice,
    "SUB": _binary("Sub"),
    "SUM": _reduce("ReduceSum"),
    "TANH": _unary("Tanh"),
    "TRANSPOSE": transpose,
}
"""Readers by the name of the op in LiteRT's schema."""
