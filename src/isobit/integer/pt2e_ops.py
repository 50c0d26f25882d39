"""How each op of a PT2E program reads in a QDQ graph."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from onnx import TensorProto

from isobit.core.errors import UnsupportedError
from isobit.core.pt2_file import Call
from isobit.integer.pt2e_moves import (
    concat,
    cut,
    embedding,
    expand,
    pad,
    permute,
    reshape,
    select,
    size,
)
from isobit.integer.values import Constant

if TYPE_CHECKING:
    from isobit.integer.pt2e import Reading

Reader = Callable[["Reading", Call], None]

TYPES = {torch.uint8: np.uint8, torch.int8: np.int8, torch.uint16: np.uint16, torch.int16: np.int16}
"""Types of quantized tensors."""


def quantize(r: "Reading", call: Call) -> None:
    """QuantizeLinear, behind a Clip where it keeps fewer levels than its type has."""
    a, (result,) = call.arguments, call.results
    kind = _kind(call)
    limits = np.iinfo(kind)
    low, high = int(a["quant_min"]), int(a["quant_max"])
    if not (0 < a["scale"] < float("inf")) or not limits.min <= low <= a["zero_point"] <= high <= limits.max:
        raise UnsupportedError(f"{result}: a scale of {a['scale']} with levels from {low} to {high}")
    scale: np.ndarray = np.asarray(a["scale"], np.float32)
    zero_point: np.ndarray = np.asarray(a["zero_point"], kind)
    x = r.operand(a["input"])
    if (low, high) != (limits.min, limits.max):
        ends = [
            r.initializer(f"{result}/{word}", np.asarray((end - int(zero_point)) * scale, np.float32))
            for word, end in (("lowest", low), ("highest", high))
        ]
        x = r.add("Clip", [x, *ends], f"{result}/clipped")
    inputs = [x, r.initializer(f"{result}/scale", scale), r.initializer(f"{result}/zero_point", zero_point)]
    r.add("QuantizeLinear", inputs, result)
    r.integer(result, kind)


def dequantize(r: "Reading", call: Call) -> None:
    """DequantizeLinear: of a weight, or of an activation's integers."""
    a, (result,) = call.arguments, call.results
    kind = _kind(call)
    scale: np.ndarray
    zero_point: np.ndarray
    if "scale" in a:
        scale, zero_point = np.asarray(a["scale"], np.float32), np.asarray(a["zero_point"], kind)
    else:
        scale = r.constant(a["scales"]).astype(np.float32)
        zeros = a.get("zero_points")
        zero_point = np.zeros(scale.shape, kind) if zeros is None else r.constant(zeros).astype(kind)
    if not np.isfinite(scale).all() or not (scale > 0).all():
        raise UnsupportedError(f"{result}: scales have to be positive")
    if a["input"].name in r.program.constants:
        q = r.constant(a["input"])
        if q.dtype != kind:
            raise UnsupportedError(f"{result}: a weight of {q.dtype} is dequantized as {np.dtype(kind)}")
        r.weights[result] = Constant(q, scale, zero_point, int(a.get("axis", 0)))
        return
    if r.integer_type(a["input"]) != kind or scale.ndim:
        raise UnsupportedError(f"{result} dequantizes what no quantizer wrote, or with several scales")
    r.view(call, scale, zero_point)


def conv(r: "Reading", call: Call) -> None:
    """Conv."""
    n = len(r.shape(call.arguments["input"])) - 2
    strides, pads, dilations = (_ints(call, key, n, d) for key, d in (("stride", 1), ("padding", 0), ("dilation", 1)))
    r.add(
        "Conv", _parameters(r, call), call.results[0], strides=strides, pads=[*pads, *pads], dilations=dilations,
        group=int(call.arguments.get("groups", 1)),
    )  # fmt: skip


def conv_transpose(r: "Reading", call: Call) -> None:
    """ConvTranspose."""
    n = len(r.shape(call.arguments["input"])) - 2
    strides, pads, dilations = (_ints(call, key, n, d) for key, d in (("stride", 1), ("padding", 0), ("dilation", 1)))
    r.add(
        "ConvTranspose", _parameters(r, call), call.results[0], strides=strides, pads=[*pads, *pads],
        dilations=dilations, output_padding=_ints(call, "output_padding", n, 0),
        group=int(call.arguments.get("groups", 1)),
    )  # fmt: skip


def linear(r: "Reading", call: Call) -> None:
    """Gemm of matrices; MatMul and Add of more dimensions."""
    a, (result,) = call.arguments, call.results
    weight, bias = r.weight(a["weight"]), a.get("bias")
    added = r.bias(a["input"], weight, bias)
    if len(r.shape(a["input"])) == 2:
        inputs = [r.operand(a["input"]), r.operand(a["weight"]), *([added] if added else [])]
        r.add("Gemm", inputs, result, transB=1)
        return
    turned = f"{a['weight'].name}/transposed"
    if weight is not None:
        r.dequantized(f"{turned}/{result}", turned, weight.transposed([1, 0]))
        turned = f"{turned}/{result}"
    else:
        r.initializer(turned, r.constant(a["weight"]).T)
    r.add("MatMul", [r.operand(a["input"]), turned], f"{result}/product" if added else result)
    if added:
        r.add("Add", [f"{result}/product", added], result)


def binary(op: str) -> Reader:
    """An op of two tensors, or of a tensor and a number."""

    def read(r: "Reading", call: Call) -> None:
        a = call.arguments
        if a.get("alpha", 1) != 1:
            raise UnsupportedError(f"{call.results[0]} ({call.target}) has alpha = {a['alpha']}")
        r.add(op, [r.operand(a["self"]), r.operand(a["other"])], call.results[0])

    return read


def unary(op: str, **attributes: Any) -> Reader:
    """An op of one tensor."""

    def read(r: "Reading", call: Call) -> None:
        r.add(op, [r.operand(call.arguments["self"])], call.results[0], **attributes)

    return read


def clip(low: float | None, high: float | None) -> Reader:
    """Clip; the limits are those of the op unless these."""

    def read(r: "Reading", call: Call) -> None:
        a = call.arguments
        ends = [a.get("min_val", a.get("min", low)), a.get("max_val", a.get("max", high))]
        inputs = ["" if e is None else r.operand(e) for e in ends]
        r.add("Clip", [r.operand(a["self"]), *inputs], call.results[0])

    return read


def max_pool(r: "Reading", call: Call) -> None:
    """MaxPool."""
    kernel, strides, pads = _windows(call)
    r.add(
        "MaxPool", [r.operand(call.arguments["self"])], call.results[0], kernel_shape=kernel, strides=strides,
        pads=pads, dilations=_ints(call, "dilation", len(kernel), 1), ceil_mode=int(_given(call, "ceil_mode", False)),
    )  # fmt: skip


def average_pool(r: "Reading", call: Call) -> None:
    """AveragePool."""
    kernel, strides, pads = _windows(call)
    if call.arguments.get("divisor_override") is not None:
        raise UnsupportedError(f"{call.results[0]}: an average with a divisor of its own")
    r.add(
        "AveragePool", [r.operand(call.arguments["self"])], call.results[0], kernel_shape=kernel, strides=strides,
        pads=pads, ceil_mode=int(_given(call, "ceil_mode", False)),
        count_include_pad=int(_given(call, "count_include_pad", True)),
    )  # fmt: skip


def global_average(r: "Reading", call: Call) -> None:
    """GlobalAveragePool."""
    if set(call.arguments["output_size"]) != {1}:
        raise UnsupportedError(f"{call.results[0]}: an adaptive average pooling to more than one pixel")
    r.add("GlobalAveragePool", [r.operand(call.arguments["self"])], call.results[0])


def mean(r: "Reading", call: Call) -> None:
    """ReduceMean, or GlobalAveragePool where all pixels are averaged."""
    a, (result,) = call.arguments, call.results
    rank, keep = len(r.shape(a["self"])), bool(a.get("keepdim", False))
    axes = sorted(int(d) % rank for d in (a.get("dim") or range(rank)))
    if keep and rank > 2 and axes == list(range(2, rank)):
        r.add("GlobalAveragePool", [r.operand(a["self"])], result)
        return
    constant = r.initializer(f"{result}/axes", np.array(axes, np.int64))
    r.add("ReduceMean", [r.operand(a["self"]), constant], result, keepdims=int(keep))


def softmax(r: "Reading", call: Call) -> None:
    """Softmax."""
    r.add("Softmax", [r.operand(call.arguments["self"])], call.results[0], axis=int(call.arguments["dim"]))


def layer_norm(r: "Reading", call: Call) -> None:
    """LayerNormalization."""
    a, (result,) = call.arguments, call.results
    sizes = [int(s) for s in a["normalized_shape"]]
    weight = a.get("weight")
    ones = r.initializer(f"{result}/ones", np.ones(sizes, np.float32)) if weight is None else r.operand(weight)
    bias = [] if a.get("bias") is None else [r.operand(a["bias"])]
    epsilon = float(a.get("eps", 1e-5))
    r.add("LayerNormalization", [r.operand(a["input"]), ones, *bias], result, axis=-len(sizes), epsilon=epsilon)


def batch_norm(r: "Reading", call: Call) -> None:
    """BatchNormalization with the statistics that it has."""
    a = call.arguments
    names = ("input", "weight", "bias", "running_mean", "running_var")
    if a["training"] or any(a.get(name) is None for name in names):
        raise UnsupportedError(f"{call.results[0]}: a batch norm in training, or without parameters")
    r.add("BatchNormalization", [r.operand(a[name]) for name in names], call.results[0], epsilon=float(a["eps"]))


def gelu(r: "Reading", call: Call) -> None:
    """Gelu."""
    kind = str(call.arguments.get("approximate", "none"))
    r.add("Gelu", [r.operand(call.arguments["self"])], call.results[0], approximate=kind)


def leaky_relu(r: "Reading", call: Call) -> None:
    """LeakyRelu."""
    slope = float(call.arguments.get("negative_slope", 0.01))
    r.add("LeakyRelu", [r.operand(call.arguments["self"])], call.results[0], alpha=slope)


def silu(r: "Reading", call: Call) -> None:
    """x · sigmoid(x)."""
    (result,), x = call.results, r.operand(call.arguments["self"])
    r.add("Mul", [x, r.add("Sigmoid", [x], f"{result}/sigmoid")], result)


def cast(r: "Reading", call: Call) -> None:
    """Cast."""
    kinds = {torch.float32: TensorProto.FLOAT, torch.int32: TensorProto.INT32, torch.int64: TensorProto.INT64,
             torch.bool: TensorProto.BOOL}  # fmt: skip
    kind = call.arguments.get("dtype")
    if kind is None:
        same(r, call)
        return
    if kind not in kinds:
        raise UnsupportedError(f"{call.results[0]}: a cast to {kind}")
    r.add("Cast", [r.operand(call.arguments["self"])], call.results[0], to=kinds[kind])


def choose(r: "Reading", call: Call) -> None:
    """Where."""
    a = call.arguments
    r.add("Where", [r.operand(a[key]) for key in ("condition", "self", "other")], call.results[0])


def smallest(r: "Reading", call: Call) -> None:
    """Min, of floats or of integers."""
    a, (result,) = call.arguments, call.results
    r.add("Min", [r.operand(a["self"]), r.operand(a["other"])], result)
    if (kind := r.integer_type(a["self"])) is not None:
        r.integer(result, kind)


def same(r: "Reading", call: Call) -> None:
    """An op that changes no value."""
    if call.arguments.get("train"):
        raise UnsupportedError(f"{call.results[0]}: a dropout in training")
    r.alias(call.results[0], call.arguments["self" if "self" in call.arguments else "input"])


def _kind(call: Call) -> type:
    kind = call.arguments["dtype"]
    if kind not in TYPES:
        raise UnsupportedError(f"{call.results[0]}: integers of {kind} have no rule here")
    return TYPES[kind]


def _given(call: Call, name: str, default: Any) -> Any:
    found = call.arguments.get(name)
    return default if found is None else found


def _ints(call: Call, name: str, count: int, default: int) -> list[int]:
    """A list of one number for each axis, which the file may shorten to one."""
    found = call.arguments.get(name)
    found = [default] if found is None or found == [] else found if isinstance(found, list) else [found]
    return [int(v) for v in (found * count if len(found) == 1 else found)]


def _windows(call: Call) -> tuple[list[int], list[int], list[int]]:
    """Kernel, strides and pads of a pooling."""
    n = 1 if "1d" in call.target else 2
    kernel = _ints(call, "kernel_size", n, 1)
    given = call.arguments.get("stride")
    strides = _ints(call, "stride", n, 1) if given else kernel
    pads = _ints(call, "padding", n, 0)
    return kernel, strides, [*pads, *pads]


def _parameters(r: "Reading", call: Call) -> list[str]:
    a = call.arguments
    bias = r.bias(a["input"], r.weight(a["weight"]), a.get("bias"))
    return [r.operand(a["input"]), r.operand(a["weight"]), *([bias] if bias else [])]


_ATEN: Mapping[str, Reader] = {
    "_to_copy.default": cast,
    "adaptive_avg_pool1d.default": global_average,
    "adaptive_avg_pool2d.default": global_average,
    "add.Tensor": binary("Add"),
    "add_.Tensor": binary("Add"),
    "alias.default": same,
    "avg_pool2d.default": average_pool,
    "batch_norm.default": batch_norm,
    "cat.default": concat,
    "clamp.default": clip(None, None),
    "clone.default": same,
    "constant_pad_nd.default": pad,
    "contiguous.default": same,
    "conv1d.default": conv,
    "conv2d.default": conv,
    "conv3d.default": conv,
    "conv_transpose1d.default": conv_transpose,
    "conv_transpose2d.input": conv_transpose,
    "detach.default": same,
    "div.Tensor": binary("Div"),
    "dropout.default": same,
    "embedding.default": embedding,
    "eq.Tensor": binary("Equal"),
    "erf.default": unary("Erf"),
    "expand.default": expand,
    "flatten.using_ints": reshape,
    "gelu.default": gelu,
    "hardsigmoid.default": unary("HardSigmoid", alpha=1 / 6),
    "hardswish.default": unary("HardSwish"),
    "hardswish_.default": unary("HardSwish"),
    "hardtanh.default": clip(-1.0, 1.0),
    "hardtanh_.default": clip(-1.0, 1.0),
    "isnan.default": unary("IsNaN"),
    "layer_norm.default": layer_norm,
    "leaky_relu.default": leaky_relu,
    "linear.default": linear,
    "matmul.default": binary("MatMul"),
    "max_pool1d.default": max_pool,
    "max_pool2d.default": max_pool,
    "mean.dim": mean,
    "minimum.default": smallest,
    "mul.Tensor": binary("Mul"),
    "pad.default": pad,
    "permute.default": permute,
    "relu.default": unary("Relu"),
    "relu6.default": clip(0.0, 6.0),
    "relu6_.default": clip(0.0, 6.0),
    "relu_.default": unary("Relu"),
    "reshape.default": reshape,
    "select.int": select,
    "sigmoid.default": unary("Sigmoid"),
    "silu.default": silu,
    "slice.Tensor": cut,
    "softmax.int": softmax,
    "sqrt.default": unary("Sqrt"),
    "squeeze.dim": reshape,
    "sub.Tensor": binary("Sub"),
    "sym_size.int": size,
    "tanh.default": unary("Tanh"),
    "to.dtype": cast,
    "transpose.int": permute,
    "unsqueeze.default": reshape,
    "view.default": reshape,
    "where.self": choose,
}

READERS: Mapping[str, Reader] = {
    **{f"aten.{name}": reader for name, reader in _ATEN.items()},
    "quantized_decomposed.quantize_per_tensor.default": quantize,
    "quantized_decomposed.dequantize_per_tensor.default": dequantize,
    "quantized_decomposed.dequantize_per_channel.default": dequantize,
}
"""Readers by the targets of calls."""
