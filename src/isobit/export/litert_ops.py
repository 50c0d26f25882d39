"""How each op of a QDQ graph is written as ops of LiteRT. Integer and float forms differ in their tensors alone."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from isobit.core.errors import UnsupportedError
from isobit.core.litert_file import FUSED_ACTIVATIONS
from isobit.export.litert_graph import CHANNELS_LAST, Call, Translation, Value
from isobit.export.litert_transformers import cast, choose, expand, is_nan, layer_norm, select, softmax
from isobit.export.litert_windows import VALID, padded, sizes, with_pads, write_pad
from isobit.integer.windows import Window, window_of

Translator = Callable[[Translation, Call], Value]


def conv(t: Translation, call: Call) -> Value:
    """CONV_2D, or DEPTHWISE_CONV_2D for groups of one input channel; over one dimension, with a height of one."""
    x, window_of_it = _image(t, call, call.node.inputs[0])
    data, bias, scale = _parameters(t, call)
    window = window_of_it(data.shape[2:])
    data = data.reshape(*data.shape[:2], *window.kernel)
    x, padding = padded(t, x, window, call.node.name)
    channels, groups = x.shape[1], int(call.node.attributes.get("group", 1))
    depthwise = groups == channels and groups > 1
    order = (1, 2, 3, 0) if depthwise else (0, 2, 3, 1)
    axis = 3 if depthwise else 0
    weight = t.builder.constant(call.node.inputs[1], np.ascontiguousarray(data.transpose(order)), scale, axis)
    y = _plane(t, call)
    options = {
        "padding": padding,
        "strideH": window.strides[0],
        "strideW": window.strides[1],
        "dilationHFactor": window.dilations[0],
        "dilationWFactor": window.dilations[1],
        "fusedActivationFunction": FUSED_ACTIVATIONS[call.activation],
    }
    if depthwise:
        options["depthMultiplier"] = data.shape[0] // groups
    kind = "DEPTHWISE_CONV_2D" if depthwise else "CONV_2D"
    t.builder.op(kind, [x.index, weight, bias], [y.index], version=3 if call.integer else 1, **options)
    return _of_rank(t, call, y)


def product(t: Translation, call: Call) -> Value:
    """FULLY_CONNECTED for a product with a weight, BATCH_MATMUL for one of two activations."""
    node = call.node
    if node.inputs[1] not in t.plan.constants and node.inputs[1] not in t.graph.constants:
        a, b = (t.laid_out(t.operand(n, integer=call.integer), channels_last=False) for n in node.inputs[:2])
        y = t.result(call.result, call.format, channels_last=False)
        t.builder.op("BATCH_MATMUL", [a.index, b.index], [y.index], version=2 if call.integer else 1)
        return y
    if node.attributes.get("transA") or node.attributes.get("alpha", 1.0) != 1.0:
        raise UnsupportedError(f"LiteRT: {node.name} is a Gemm with transA or alpha")
    x = t.laid_out(t.operand(node.inputs[0], integer=call.integer), channels_last=False)
    data, bias, scale = _parameters(t, call)
    if data.ndim != 2:
        raise UnsupportedError(f"LiteRT: {node.name} multiplies with a constant of {data.ndim} dimensions")
    data = data if node.attributes.get("transB") else data.T
    weight = t.builder.constant(node.inputs[1], np.ascontiguousarray(data), scale)
    y = t.result(call.result, call.format, channels_last=False)
    per_channel = call.integer and scale is not None and np.size(scale) > 1
    t.builder.op(
        "FULLY_CONNECTED", [x.index, weight, bias], [y.index], version=12 if per_channel else 5,
        keepNumDims=len(y.shape) != 2, fusedActivationFunction=FUSED_ACTIVATIONS[call.activation],
    )  # fmt: skip
    return y


def binary(kind: str, *, fuses: bool = True) -> Translator:
    """An op of two operands that are spread over each other."""

    def translate(t: Translation, call: Call) -> Value:
        names = call.node.inputs[:2]
        last = any(n in t.values and t.values[n].channels_last for n in names)
        rank = len(t.shape(call.result))
        operands = [_spread(t, t.operand(n, integer=call.integer), rank, last=last) for n in names]
        y = t.result(call.result, call.format, channels_last=last)
        options = {"fusedActivationFunction": FUSED_ACTIVATIONS[call.activation]} if fuses else {}
        t.builder.op(kind, [x.index for x in operands], [y.index], version=2 if call.integer else 1, **options)
        return y

    return translate


def unary(kind: str, version: int = 1, **options: Any) -> Translator:
    """An op that treats each element by itself."""

    def translate(t: Translation, call: Call) -> Value:
        x = t.operand(call.node.inputs[0], integer=call.integer)
        y = t.result(call.result, call.format, channels_last=x.channels_last)
        t.builder.op(kind, [x.index], [y.index], version=version, **options)
        return y

    return translate


def pool(kind: str) -> Translator:
    """MAX_POOL_2D and AVERAGE_POOL_2D."""

    def translate(t: Translation, call: Call) -> Value:
        x, window_of_it = _image(t, call, call.node.inputs[0])
        window = window_of_it(call.ints("kernel_shape", []))
        if set(window.dilations) != {1}:
            raise UnsupportedError(f"LiteRT: {call.node.name} is a pooling with dilations")
        highest = kind == "MAX_POOL_2D"
        outside = not highest and not window.include_pad
        if window.include_pad and not highest:  # zeros that count are zeros of the image
            x, padding = with_pads(t, x, window, call.node.name), VALID
        else:
            x, padding = padded(t, x, window, call.node.name, lowest=highest, average=outside)
        y = _plane(t, call)
        t.builder.op(
            kind, [x.index], [y.index], version=2 if call.integer else 1, padding=padding, strideH=window.strides[0],
            strideW=window.strides[1], filterHeight=window.kernel[0], filterWidth=window.kernel[1],
        )  # fmt: skip
        return _of_rank(t, call, y)

    return translate


def global_average(t: Translation, call: Call) -> Value:
    """MEAN over height and width."""
    x, _ = _image(t, call, call.node.inputs[0])
    y = _plane(t, call)
    axes = t.builder.constant("height_and_width", np.array([1, 2], np.int32))
    t.builder.op("MEAN", [x.index, axes], [y.index], version=2 if call.integer else 1, keepDims=True)
    return _of_rank(t, call, y)


def reduce_mean(t: Translation, call: Call) -> Value:
    """MEAN over given axes."""
    x = t.laid_out(t.operand(call.node.inputs[0], integer=call.integer), channels_last=False)
    names = call.node.inputs[1:]
    axes = t.floats(names[0]).tolist() if names else call.ints("axes", [])
    y = t.result(call.result, call.format, channels_last=False)
    constant = t.builder.constant(f"{y.name}/axes", np.array([a % len(x.shape) for a in axes], np.int32))
    keep = bool(call.node.attributes.get("keepdims", 1))
    t.builder.op("MEAN", [x.index, constant], [y.index], version=2 if call.integer else 1, keepDims=keep)
    return y


def concat(t: Translation, call: Call) -> Value:
    """CONCATENATION; integers that have another scale are requantized first."""
    values = [t.operand(n, integer=call.integer) for n in call.node.inputs]
    last = any(v.channels_last for v in values)
    values = [t.laid_out(v, channels_last=last) for v in values]
    if call.format is not None:
        values = [t.quantize(v, f"{call.result}/part{i}", call.format) for i, v in enumerate(values)]
    y = t.result(call.result, call.format, channels_last=last)
    axis = int(call.node.attributes["axis"]) % len(y.shape)
    stored = CHANNELS_LAST.index(axis) if last else axis
    t.builder.op("CONCATENATION", [v.index for v in values], [y.index], version=2 if call.integer else 1, axis=stored)
    return y


def reshape(t: Translation, call: Call) -> Value:
    """RESHAPE, for Reshape, Flatten, Squeeze and Unsqueeze."""
    x = t.operand(call.node.inputs[0], integer=call.integer)
    if not (x.channels_last and x.shape[2:] == (1, 1)):  # one pixel lies the same in both orders
        x = t.laid_out(x, channels_last=False)
    y = t.result(call.result, call.format, channels_last=False, dtype=x.dtype)
    t.reshape(x, y)
    return y


def transpose(t: Translation, call: Call) -> Value:
    """TRANSPOSE of dimensions in the order of the network."""
    x = t.laid_out(t.operand(call.node.inputs[0], integer=call.integer), channels_last=False)
    order = call.ints("perm", range(len(x.shape))[::-1])
    y = t.result(call.result, call.format, channels_last=False, dtype=x.dtype)
    axes = t.builder.constant(f"{y.name}/order", np.array(order, np.int32))
    t.builder.op("TRANSPOSE", [x.index, axes], [y.index], version=2 if call.integer else 1)
    return y


def cut(t: Translation, call: Call) -> Value:
    """STRIDED_SLICE, for Slice with constant limits."""
    x = t.operand(call.node.inputs[0], integer=call.integer)
    starts, ends = (t.floats(n).astype(np.int64) for n in call.node.inputs[1:3])
    rest = [t.floats(n).astype(np.int64) if n else None for n in (*call.node.inputs[3:5], "", "")[:2]]
    axes = np.arange(len(starts)) if rest[0] is None else rest[0] % len(x.shape)
    steps = np.ones(len(starts), np.int64) if rest[1] is None else rest[1]
    rank = len(x.shape)
    begin, end, stride = [0] * rank, [0] * rank, [1] * rank
    full = [True] * rank
    for axis, a, b, s in zip(axes, starts, ends, steps, strict=True):
        size = x.shape[axis]
        if size is None or s < 1:
            raise UnsupportedError(f"LiteRT: {call.node.name} slices the batch, or backwards")
        ends_at = int(min(b + size if b < 0 else b, size))
        begin[axis], end[axis], stride[axis] = int(a + size if a < 0 else a), ends_at, int(s)
        full[axis] = False
    order = CHANNELS_LAST if x.channels_last else tuple(range(rank))
    y = t.result(call.result, call.format, channels_last=x.channels_last, dtype=x.dtype)
    limits = [
        t.builder.constant(f"{y.name}/{word}", np.array([values[i] for i in order], np.int32))
        for word, values in (("begin", begin), ("end", end), ("strides", stride))
    ]
    mask = sum(1 << place for place, i in enumerate(order) if full[i])
    t.builder.op(
        "STRIDED_SLICE", [x.index, *limits], [y.index], version=2 if call.integer else 1, beginMask=mask, endMask=mask
    )
    return y


def pad(t: Translation, call: Call) -> Value:
    """PAD with zeros."""
    node = call.node
    value = t.floats(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] else np.zeros(())
    if np.any(value) or node.attributes.get("mode", b"constant") != b"constant":
        raise UnsupportedError(f"LiteRT: {node.name} pads with something else than zeros")
    x = t.operand(node.inputs[0], integer=call.integer)
    given = t.floats(node.inputs[1]).reshape(2, -1).astype(np.int32)
    axes = t.floats(node.inputs[3]).tolist() if len(node.inputs) > 3 and node.inputs[3] else range(given.shape[1])
    pads = np.zeros((len(x.shape), 2), np.int32)
    for axis, before, after in zip(axes, *given, strict=True):
        pads[axis] = before, after
    order = CHANNELS_LAST if x.channels_last else range(len(x.shape))
    y = t.result(call.result, call.format, channels_last=x.channels_last)
    write_pad(t, x, y, pads[list(order)])
    return y


def clip(t: Translation, call: Call) -> Value:
    """MAXIMUM and MINIMUM of floats; RELU and RELU6 where that is what the limits say."""
    names = [*call.node.inputs[1:3], "", ""][:2]
    low, high = (float(t.floats(n)) if n else None for n in names)
    if (low, high) in ((0.0, 6.0), (0.0, None)):
        return unary("RELU6" if high else "RELU")(t, call)
    x = t.operand(call.node.inputs[0], integer=False)
    for i, (kind, bound) in enumerate((("MAXIMUM", low), ("MINIMUM", high))):
        if bound is None:
            continue
        last = kind == "MINIMUM" or high is None
        y = (
            t.result(call.result, None, channels_last=x.channels_last)
            if last
            else t.scratch(f"{call.result}/{i}", x.shape, None, channels_last=x.channels_last)
        )
        limit = t.builder.constant(f"{y.name}/limit", np.array(bound, np.float32))
        t.builder.op(kind, [x.index, limit], [y.index])
        x = y
    return x


def batch_norm(t: Translation, call: Call) -> Value:
    """MUL and ADD, in float, channel by channel."""
    names = call.node.inputs[1:5]
    gamma, beta, mean, variance = (t.floats(n).astype(np.float64) for n in names)
    slope = gamma / np.sqrt(variance + float(call.node.attributes.get("epsilon", 1e-5)))
    x = t.operand(call.node.inputs[0], integer=False)
    x = t.laid_out(x, channels_last=len(x.shape) == 4)
    places = (-1,) if x.channels_last else (-1, *[1] * (len(x.shape) - 2))
    scaled = t.scratch(f"{call.result}/scaled", x.shape, None, channels_last=x.channels_last)
    factors, shifts = (
        t.builder.constant(f"{call.result}/{word}", values.astype(np.float32).reshape(places))
        for word, values in (("slope", slope), ("shift", beta - mean * slope))
    )
    t.builder.op("MUL", [x.index, factors], [scaled.index])
    y = t.result(call.result, None, channels_last=x.channels_last)
    t.builder.op("ADD", [scaled.index, shifts], [y.index])
    return y


def gelu(t: Translation, call: Call) -> Value:
    """GELU."""
    kind = call.node.attributes.get("approximate", b"none")
    return unary("GELU", approximate=kind == b"tanh")(t, call)


def leaky_relu(t: Translation, call: Call) -> Value:
    """LEAKY_RELU."""
    return unary("LEAKY_RELU", alpha=float(call.node.attributes.get("alpha", 0.01)))(t, call)


def _image(t: Translation, call: Call, name: str) -> tuple[Value, Callable[[Sequence[int]], Window]]:
    """An image with its channels last, and the window of a kernel over it; a line is an image with a height of one."""
    x = t.operand(name, integer=call.integer)
    if len(x.shape) not in (3, 4):
        raise UnsupportedError(
            f"LiteRT: {call.node.name} ({call.node.op}) has {len(x.shape) - 2} dimensions, not 1 or 2"
        )
    if len(x.shape) == 4:
        return t.laid_out(x, channels_last=True), lambda kernel: window_of(call.node, sizes(x), kernel)
    plane = t.scratch(f"{call.result}/line", (*x.shape[:2], 1, x.shape[2]), x.format)
    t.reshape(x, plane)
    return t.laid_out(plane, channels_last=True), lambda kernel: _flat(window_of(call.node, sizes(x), kernel))


def _flat(window: Window) -> Window:
    """A window over a line as one over a plane with a height of one."""
    return Window(
        kernel=(1, *window.kernel), strides=(1, *window.strides), dilations=(1, *window.dilations),
        before=(0, *window.before), after=(0, *window.after), include_pad=window.include_pad,
    )  # fmt: skip


def _plane(t: Translation, call: Call) -> Value:
    """The tensor that an op on images writes: the result, or a plane of one row that is to become it."""
    shape = t.shape(call.result)
    if len(shape) == 4:
        return t.result(call.result, call.format, channels_last=True)
    return t.scratch(f"{call.result}/plane", (*shape[:2], 1, shape[2]), call.format, channels_last=True)


def _of_rank(t: Translation, call: Call, plane: Value) -> Value:
    """The result of an op on images, in the rank that the network has."""
    if len(t.shape(call.result)) == 4:
        return plane
    y = t.result(call.result, call.format, channels_last=False)
    t.reshape(t.laid_out(plane, channels_last=False), y)
    return y


def _parameters(t: Translation, call: Call) -> tuple[np.ndarray, int, np.ndarray | None]:
    """The weight's data, the tensor of the bias (0 where there is none), and the scales of a weight of integers."""
    name = call.bias or (call.node.inputs[2] if len(call.node.inputs) > 2 else "")
    if not call.integer:
        data = t.floats(call.node.inputs[1])
        bias = t.floats(name) if name else np.zeros(_channels(call, data), np.float32)
        return data, t.builder.constant(name or f"{call.result}/bias", bias), None
    weight = t.weight(call.node.inputs[1])
    x = t.operand(call.node.inputs[0], integer=True)
    assert x.format is not None
    if not name:
        none = np.zeros(_channels(call, weight.q), np.int32)
        return weight.q, t.builder.constant(f"{call.result}/bias", none, x.format.scale * weight.scale), weight.scale
    found = t.plan.constants[name]
    return weight.q, t.builder.constant(name, found.q, found.scale), weight.scale


def _channels(call: Call, data: np.ndarray) -> int:
    return int(data.shape[0 if call.node.op == "Conv" or call.node.attributes.get("transB") else -1])


def _spread(t: Translation, x: Value, rank: int, *, last: bool) -> Value:
    """An operand of a binary op in the order of the others."""
    if not last or x.channels_last:
        return x
    if len(x.shape) == 4:
        return t.laid_out(x, channels_last=True)
    if not x.shape:
        return x
    wide = t.scratch(f"{x.name}/spread", (*[1] * (rank - len(x.shape)), *x.shape), x.format)
    t.reshape(x, wide)
    return t.laid_out(wide, channels_last=True)


OPS: Mapping[str, Translator] = {
    "Add": binary("ADD"),
    "AveragePool": pool("AVERAGE_POOL_2D"),
    "BatchNormalization": batch_norm,
    "Cast": cast,
    "Clip": clip,
    "Concat": concat,
    "Conv": conv,
    "Div": binary("DIV"),
    "Expand": expand,
    "Flatten": reshape,
    "Gather": select,
    "Gelu": gelu,
    "Gemm": product,
    "GlobalAveragePool": global_average,
    "HardSwish": unary("HARD_SWISH"),
    "IsNaN": is_nan,
    "LayerNormalization": layer_norm,
    "LeakyRelu": leaky_relu,
    "MatMul": product,
    "MaxPool": pool("MAX_POOL_2D"),
    "Mul": binary("MUL"),
    "Pad": pad,
    "ReduceMean": reduce_mean,
    "Relu": unary("RELU"),
    "Reshape": reshape,
    "Sigmoid": unary("LOGISTIC"),
    "Slice": cut,
    "Softmax": softmax,
    "Sqrt": unary("SQRT"),
    "Squeeze": reshape,
    "Sub": binary("SUB"),
    "Tanh": unary("TANH"),
    "Transpose": transpose,
    "Unsqueeze": reshape,
    "Where": choose,
}
"""Translators by ONNX op."""

INTEGER = frozenset({"Add", "AveragePool", "Concat", "Conv", "Gemm", "GlobalAveragePool", "MatMul", "Mul"})
"""Ops whose results LiteRT rounds to any grid; others with integer results go through float."""
