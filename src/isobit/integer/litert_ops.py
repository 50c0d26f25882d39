"""What each op of LiteRT means, in nodes of a QDQ graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import helper

from isobit.core.errors import UnsupportedError

if TYPE_CHECKING:
    from isobit.integer.litert import Reading

Reader = Callable[["Reading", Any], None]

TO_FIRST, TO_LAST = [0, 3, 1, 2], [0, 2, 3, 1]
LARGEST = np.iinfo(np.int64).max


def _conv(r: Reading, op: Any) -> None:
    options, (x, w) = op.builtinOptions, op.inputs[:2]
    depthwise = hasattr(options, "depthMultiplier")
    data = r.fixed(w)
    turned = data.transpose(3, 0, 1, 2) if depthwise else data.transpose(0, 3, 1, 2)
    channels = r.graph.tensors[x].shape[3]
    groups = int(channels) if depthwise else int(channels) // int(turned.shape[1])
    inputs = [_first(r, r.operand(x)), r.constant(w, turned, 0, "/channels_first")]
    inputs += _bias(r, op)
    y = r.names[op.outputs[0]]
    r.add(
        "Conv", inputs, f"{y}/conv", name=y, group=groups, strides=[options.strideH, options.strideW],
        dilations=[options.dilationHFactor, options.dilationWFactor], **_padding(options),
    )  # fmt: skip
    r.store(_last(r, _activated(r, f"{y}/conv", options)), op.outputs[0])


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


def _batch_matmul(r: Reading, op: Any) -> None:
    values = [r.operand(i) for i in op.inputs[:2]]
    for i, turned in enumerate((op.builtinOptions.adjX, op.builtinOptions.adjY)):
        if turned:
            order = [*range(r.rank(op.inputs[i]) - 2), r.rank(op.inputs[i]) - 1, r.rank(op.inputs[i]) - 2]
            values[i] = r.add("Transpose", [values[i]], f"{r.names[op.outputs[0]]}/turned{i}", perm=order)
    _plain(r, op, "MatMul", values)


def _binary(kind: str) -> Reader:
    def read(r: Reading, op: Any) -> None:
        y = r.names[op.outputs[0]]
        result = r.add(kind, [r.operand(i) for i in op.inputs], f"{y}/{kind.lower()}", name=y)
        r.store(_activated(r, result, op.builtinOptions), op.outputs[0])

    return read


def _unary(kind: str, **attributes: Any) -> Reader:
    """An op that is evaluated in float: a table, on integers, whose rounding differs from engine to engine."""

    def read(r: Reading, op: Any) -> None:
        y = r.names[op.outputs[0]]
        value = r.operand(op.inputs[0])
        if r.is_integer(op.inputs[0]):
            value = r.add("Identity", [value], f"{y}/float")
        own = {"alpha": float(op.builtinOptions.alpha)} if kind == "LeakyRelu" else {}
        r.store(r.add(kind, [value], f"{y}/{kind.lower()}", name=y, **attributes, **own), op.outputs[0])

    return read


def _relu(high: float | None) -> Reader:
    def read(r: Reading, op: Any) -> None:
        y = r.names[op.outputs[0]]
        limits = [r.initializer("zero", np.zeros((), np.float32))]
        limits += [] if high is None else [r.initializer(f"limit_{high:g}", np.array(high, np.float32))]
        r.store(r.add("Clip", [r.operand(op.inputs[0]), *limits], f"{y}/relu", name=y), op.outputs[0])

    return read


def _pool(kind: str) -> Reader:
    def read(r: Reading, op: Any) -> None:
        options, y = op.builtinOptions, r.names[op.outputs[0]]
        value = _first(r, r.operand(op.inputs[0]))
        r.add(
            kind, [value], f"{y}/pool", name=y, kernel_shape=[options.filterHeight, options.filterWidth],
            strides=[options.strideH, options.strideW], **_padding(options),
        )  # fmt: skip
        r.store(_last(r, _activated(r, f"{y}/pool", options)), op.outputs[0])

    return read


def _mean(r: Reading, op: Any) -> None:
    y = r.names[op.outputs[0]]
    axes = sorted(int(a) % r.rank(op.inputs[0]) for a in r.fixed(op.inputs[1]).reshape(-1))
    keep = bool(op.builtinOptions.keepDims)
    if r.rank(op.inputs[0]) == 4 and axes == [1, 2] and keep:
        value = _first(r, r.operand(op.inputs[0]))
        r.store(_last(r, r.add("GlobalAveragePool", [value], f"{y}/mean", name=y)), op.outputs[0])
        return
    axis = r.initializer(f"{y}/axes", np.array(axes, np.int64))
    value = r.operand(op.inputs[0])
    r.store(r.add("ReduceMean", [value, axis], f"{y}/mean", name=y, keepdims=int(keep)), op.outputs[0])


def _concat(r: Reading, op: Any) -> None:
    _plain(r, op, "Concat", [r.operand(i) for i in op.inputs], axis=int(op.builtinOptions.axis))


def _pad(r: Reading, op: Any) -> None:
    pads = r.fixed(op.inputs[1]).astype(np.int64).T.reshape(-1)
    values = [r.operand(op.inputs[0]), r.initializer(f"{r.names[op.outputs[0]]}/pads", pads)]
    values += [r.operand(op.inputs[2])] if len(op.inputs) > 2 else []
    _plain(r, op, "Pad", values)


def _reshape(r: Reading, op: Any) -> None:
    tensor = r.graph.tensors[op.outputs[0]]
    given = r.data(op.inputs[1]) if len(op.inputs) > 1 else np.asarray(op.builtinOptions.newShape)
    sizes = tensor.shapeSignature if tensor.shapeSignature is not None else tensor.shape
    shape = np.asarray(sizes if given is None else given, np.int64).reshape(-1)
    name = r.initializer(f"{r.names[op.outputs[0]]}/shape", shape)
    _plain(r, op, "Reshape", [r.operand(op.inputs[0]), name], allowzero=1)


def _transpose(r: Reading, op: Any) -> None:
    _plain(r, op, "Transpose", [r.operand(op.inputs[0])], perm=[int(i) for i in r.fixed(op.inputs[1])])


def _slice(r: Reading, op: Any) -> None:
    options, y = op.builtinOptions, r.names[op.outputs[0]]
    if options.ellipsisMask or options.newAxisMask or options.shrinkAxisMask:
        raise UnsupportedError(f"{y}: a STRIDED_SLICE that adds or drops dimensions has no rule here")
    begin, end, strides = (r.fixed(i).astype(np.int64).reshape(-1) for i in op.inputs[1:4])
    places = 1 << np.arange(len(begin))
    begin = np.where(places & options.beginMask, np.where(strides > 0, 0, LARGEST), begin)
    end = np.where(places & options.endMask, np.where(strides > 0, LARGEST, -LARGEST), end)
    words = {"begin": begin, "end": end, "axes": np.arange(len(begin)), "steps": strides}
    names = [r.initializer(f"{y}/{word}", values.astype(np.int64)) for word, values in words.items()]
    _plain(r, op, "Slice", [r.operand(op.inputs[0]), *names])


def _quantize(r: Reading, op: Any) -> None:
    value = r.operand(op.inputs[0])
    r.store(value, op.outputs[0])


def _dequantize(r: Reading, op: Any) -> None:
    x, y = op.inputs[0], op.outputs[0]
    if r.data(x) is not None:
        r.add("Identity", [r.operand(x)], r.names[y])
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


def _gather(r: Reading, op: Any) -> None:
    if op.builtinOptions.batchDims:
        raise UnsupportedError(f"{r.names[op.outputs[0]]}: a GATHER for each sample has no rule here")
    _plain(r, op, "Gather", [r.operand(i) for i in op.inputs], axis=int(op.builtinOptions.axis))


def _cast(r: Reading, op: Any) -> None:
    kind = helper.np_dtype_to_tensor_dtype(r.dtype(op.outputs[0]))
    _plain(r, op, "Cast", [r.operand(op.inputs[0])], to=kind)


def _not_equal(r: Reading, op: Any) -> None:
    y = r.names[op.outputs[0]]
    same = r.add("Equal", [r.operand(i) for i in op.inputs], f"{y}/equal")
    _plain(r, op, "Not", [same])


def _plain(r: Reading, op: Any, kind: str, values: list[str], **attributes: Any) -> None:
    y = r.names[op.outputs[0]]
    r.store(r.add(kind, values, f"{y}/{kind.lower()}", name=y, **attributes), op.outputs[0])


def _first(r: Reading, value: str) -> str:
    """An image in ONNX's order."""
    name = f"{value}/channels_first"
    if any(name in n.output for n in r.nodes):
        return name
    return r.add("Transpose", [value], name, perm=TO_FIRST)


def _last(r: Reading, value: str) -> str:
    return r.add("Transpose", [value], f"{value}/channels_last", perm=TO_LAST)


def _bias(r: Reading, op: Any) -> list[str]:
    return [r.operand(op.inputs[2])] if len(op.inputs) > 2 and op.inputs[2] >= 0 else []


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
    "AVERAGE_POOL_2D": _pool("AveragePool"),
    "BATCH_MATMUL": _batch_matmul,
    "CAST": _cast,
    "CONCATENATION": _concat,
    "CONV_2D": _conv,
    "DEPTHWISE_CONV_2D": _conv,
    "DEQUANTIZE": _dequantize,
    "DIV": _binary("Div"),
    "FULLY_CONNECTED": _fully_connected,
    "GATHER": _gather,
    "GELU": _gelu,
    "HARD_SWISH": _unary("HardSwish"),
    "LEAKY_RELU": _unary("LeakyRelu"),
    "LOGISTIC": _unary("Sigmoid"),
    "MAXIMUM": _binary("Max"),
    "MAX_POOL_2D": _pool("MaxPool"),
    "MEAN": _mean,
    "MINIMUM": _binary("Min"),
    "MUL": _binary("Mul"),
    "NOT_EQUAL": _not_equal,
    "PAD": _pad,
    "PADV2": _pad,
    "QUANTIZE": _quantize,
    "RELU": _relu(None),
    "RELU6": _relu(6.0),
    "RESHAPE": _reshape,
    "RSQRT": _rsqrt,
    "SELECT_V2": _binary("Where"),
    "SOFTMAX": _softmax,
    "SQRT": _unary("Sqrt"),
    "STRIDED_SLICE": _slice,
    "SUB": _binary("Sub"),
    "TANH": _unary("Tanh"),
    "TRANSPOSE": _transpose,
}
"""Readers by the name of the op in LiteRT's schema."""
