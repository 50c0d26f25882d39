"""The integer kernels by op: they read a node's attributes and call the arithmetic of `ops` and `accumulate`."""

from collections.abc import Callable, Mapping, Sequence
from math import prod

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from isobit.core.arithmetic import Arithmetic, LiteRtTables, ShortMultiplier, ThroughFloat
from isobit.integer import elementwise, ops
from isobit.integer.accumulate import accumulate, accumulate_pair
from isobit.integer.model import Node
from isobit.integer.requantize import multiplier, requantize
from isobit.integer.residual import add_residual
from isobit.integer.short import halving, halving_product
from isobit.integer.values import Constant, Format, Quantized
from isobit.integer.windows import window_of

Operand = Quantized | Constant | Tensor
Operands = Sequence[Operand]
Kernel = Callable[[Node, Operands, Format, Arithmetic], Tensor]


def conv(node: Node, operands: Operands, output: Format, arithmetic: Arithmetic) -> Tensor:
    """Convolution, grouped and depthwise too; padding is the zero point."""
    x, w = _activation(operands[0]), _weight(operands[1])
    acc = _convolve(node, x, w, operands[2] if len(operands) > 2 else None, bits=arithmetic.accumulator_bits)
    factor = _by_channel(multiplier(arithmetic.requantize, x.format.scale, w.scale, output.scale), w)
    if isinstance(arithmetic.requantize, ShortMultiplier) and output.bits <= 8:
        window = window_of(node, x.q.shape, w.q.shape[2:])
        if halving(int(node.attributes.get("group", 1)), x.q.shape[1], window.strides, window.dilations):
            return halving_product(acc, factor, output)
    return requantize(acc, factor, arithmetic.requantize, output)


def _convolve(node: Node, x: Quantized, w: Constant, bias: Operand | None, *, bits: int) -> Tensor:
    kernel = w.q.shape[2:]
    window = window_of(node, x.q.shape, kernel)
    padded = F.pad(x.centred, window.torch_pads(x.q.dim()))
    function = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[len(kernel)]
    group = int(node.attributes.get("group", 1))
    return accumulate(
        padded,
        w.centred,
        None if bias is None else _by_channel(_bias(_weight(bias), x, w), w),
        largest=_largest(x.format),
        reduce=tuple(range(1, w.q.ndim)),
        product=lambda a, b: function(a, b, None, window.strides, 0, window.dilations, group),
        bits=bits,
    )


def _bias(bias: Constant, x: Quantized, w: Constant) -> np.ndarray:
    """The integers of a bias at the sum's scale s_x · s_w; beside 16-bit weights its own may be 2^k times it."""
    q = bias.q.astype(np.int64)
    if w.q.dtype.itemsize == 1:
        return q
    return q * np.rint(bias.scale / (x.format.scale * w.scale)).astype(np.int64)


def _by_channel(values: np.ndarray, w: Constant) -> Tensor:
    return torch.from_numpy(np.asarray(values)).reshape(-1, *[1] * (w.q.ndim - 2))  # one scale: a numpy scalar


def gemm(node: Node, operands: Operands, output: Format, arithmetic: Arithmetic) -> Tensor:
    """Gemm: float32(alpha · s_x) takes the place of s_x."""
    x, w = _activation(operands[0]), _weight(operands[1])
    turned, bits = bool(node.attributes.get("transB")), arithmetic.accumulator_bits
    acc = _matrix_product(x, w, operands[2] if len(operands) > 2 else None, turned=turned, bits=bits)
    scale = np.float32(np.float32(node.attributes.get("alpha", 1.0)) * x.format.scale)
    rule = arithmetic.matmul or arithmetic.requantize
    return requantize(acc, torch.from_numpy(multiplier(rule, scale, w.scale, output.scale)), rule, output)


def matmul(node: Node, operands: Operands, output: Format, arithmetic: Arithmetic) -> Tensor:
    """MatMul of an activation with a weight, or with another activation."""
    x, other = _activation(operands[0]), operands[1]
    if isinstance(other, Constant):
        return gemm(node, operands, output, arithmetic)
    assert isinstance(other, Quantized)
    acc = _pair(x, other, arithmetic)
    factor = multiplier(arithmetic.requantize, x.format.scale, np.asarray(other.format.scale), output.scale)
    return requantize(acc, torch.from_numpy(factor), arithmetic.requantize, output)


def _pair(a: Quantized, b: Quantized, arithmetic: Arithmetic) -> Tensor:
    largest = (_largest(a.format), _largest(b.format))
    return accumulate_pair(a.centred, b.centred, largest=largest, bits=arithmetic.accumulator_bits)


def product_to_float(node: Node, operands: Operands, arithmetic: Arithmetic) -> Tensor:
    """Conv, Gemm or MatMul whose result stays in float: float32(acc) · float32(s_x · s_w), rounded once.

    An int32 bias is part of acc, or, where the arithmetic goes through float, is added in float32.
    """
    added: Tensor | None = None
    if isinstance(arithmetic.requantize, ThroughFloat) and len(operands) > 2:
        added, operands = torch.from_numpy(_weight(operands[2]).floats), operands[:2]
    x, other = _activation(operands[0]), operands[1]
    scale = np.float32(np.float32(node.attributes.get("alpha", 1.0)) * x.format.scale)
    if node.op == "Conv":
        w = _weight(other)
        acc = _convolve(node, x, w, None, bits=arithmetic.accumulator_bits)
        scales = _by_channel(w.scale.astype(np.float32), w)
        if added is None:
            return _rescaled(acc, scale, scales, arithmetic)
        by_channel = _by_channel(added.numpy(), w)
        if _reciprocals(arithmetic):
            return (acc.float().double() * _float_factor(arithmetic, scale, scales) + by_channel).float()
        return _rescaled(acc, scale, scales, arithmetic).add_(by_channel)
    if isinstance(other, Constant):
        bias = operands[2] if len(operands) > 2 else None
        turned, bits = bool(node.attributes.get("transB")), arithmetic.accumulator_bits
        acc = _matrix_product(x, other, bias, turned=turned, bits=bits)
        factors = other.scale
    else:
        assert isinstance(other, Quantized)
        acc, factors = _pair(x, other, arithmetic), np.asarray(other.format.scale)
    y = _rescaled(acc, scale, torch.from_numpy(np.array(factors, dtype=np.float32)), arithmetic)
    return y if added is None else y.add_(added)


def conv_with_residual(
    node: Node,
    operands: Operands,
    residual: Quantized,
    output: Format,
    arithmetic: Arithmetic,
    *,
    between: Format | None = None,
) -> Tensor:
    """A convolution that adds the integers of another tensor before it rounds; see `residual.add_residual`."""
    x, w = _activation(operands[0]), _weight(operands[1])
    acc = _convolve(node, x, w, None, bits=arithmetic.accumulator_bits)
    scale = _by_channel(w.scale.astype(np.float32) * x.format.scale, w)
    bias = _by_channel(_weight(operands[2]).floats, w) if len(operands) > 2 else None
    return add_residual(acc, scale, bias, residual, output, between)


def _rescaled(acc: Tensor, x_scale: np.float32, w_scale: Tensor, arithmetic: Arithmetic) -> Tensor:
    """float32(acc) · (s_x · s_w), or (float32(acc) · s_x) · s_w."""
    rule = arithmetic.requantize
    if isinstance(rule, ThroughFloat) and rule.stepwise:
        return (acc.float() * float(x_scale)) * w_scale
    return acc.float() * _float_factor(arithmetic, x_scale, w_scale)


def _float_factor(arithmetic: Arithmetic, x_scale: np.float32, w_scale: Tensor) -> Tensor:
    """s_x · s_w in float32, or through reciprocals."""
    if _reciprocals(arithmetic):
        return 1 / ((1 / w_scale) * float(np.float32(1) / x_scale))
    return w_scale * float(x_scale)


def is_approximate(node: Node, arithmetic: Arithmetic) -> bool:
    """Whether the engine's result is a float that depends on the processor: depthwise convolutions in ncnn."""
    return node.op == "Conv" and int(node.attributes.get("group", 1)) > 1 and _reciprocals(arithmetic)


def _reciprocals(arithmetic: Arithmetic) -> bool:
    return isinstance(arithmetic.requantize, ThroughFloat) and arithmetic.requantize.reciprocals


def _matrix_product(x: Quantized, w: Constant, bias: Operand | None, *, turned: bool, bits: int) -> Tensor:
    values = w.centred.T if turned else w.centred
    added = None if bias is None else torch.from_numpy(_bias(_weight(bias), x, w))
    largest = _largest(x.format)
    return accumulate(x.centred, values, added, largest=largest, reduce=(0,), product=torch.matmul, bits=bits)


def _pool(node: Node, operands: Operands, output: Format, arithmetic: Arithmetic) -> Tensor:
    x = _activation(operands[0])
    return ops.average(x, window_of(node, x.q.shape, node.ints("kernel_shape", [])), output, arithmetic)


def _concat(node: Node, operands: Operands, output: Format, arithmetic: Arithmetic) -> Tensor:
    parts = [ops.rescale(_activation(x), output, arithmetic) for x in operands]
    return torch.cat(parts, dim=int(node.attributes["axis"]))


def _leaky_relu(node: Node, operands: Operands, output: Format, arithmetic: Arithmetic) -> Tensor:
    x, slope = _activation(operands[0]), np.float32(node.attributes.get("alpha", 0.01))
    if isinstance(arithmetic.tables, LiteRtTables):
        return elementwise.leaky_relu(x, slope, output, arithmetic)
    v = ops.levels(x.format)
    return ops.look_up(x, torch.where(v >= 0, v, v * float(slope)), output)


def _sigmoid(node: Node, operands: Operands, output: Format, arithmetic: Arithmetic) -> Tensor:
    x = _activation(operands[0])
    if isinstance(arithmetic.tables, LiteRtTables):
        return elementwise.tabled(node, x, output, arithmetic)
    return ops.look_up(x, ops.logistic(ops.levels(x.format)), output)


def _softmax(node: Node, operands: Operands, output: Format, arithmetic: Arithmetic) -> Tensor:
    softmax = elementwise.softmax if isinstance(arithmetic.tables, LiteRtTables) else ops.softmax
    return softmax(_activation(operands[0]), int(node.attributes.get("axis", -1)), output)


def _tabled(node: Node, operands: Operands, output: Format, arithmetic: Arithmetic) -> Tensor:
    return elementwise.tabled(node, _activation(operands[0]), output, arithmetic)


def _mean(node: Node, operands: Operands, output: Format, arithmetic: Arithmetic) -> Tensor:
    """Mean over any axes, as over a plane."""
    x, given = _activation(operands[0]), operands[1]
    assert isinstance(given, Tensor)
    axes = sorted(int(a) % x.q.dim() for a in given)
    others = [i for i in range(x.q.dim()) if i not in axes]
    kept = [int(x.q.shape[i]) for i in others]
    plane = Quantized(x.q.permute(*others, *axes).reshape(prod(kept), 1, -1), x.format)
    y = ops.global_average(plane, output, arithmetic)
    keep = bool(node.attributes.get("keepdims", 1))
    return y.reshape([1 if i in axes else int(n) for i, n in enumerate(x.q.shape)] if keep else kept)


def _pad(_node: Node, operands: Operands, output: Format, _: Arithmetic) -> Tensor:
    """Zeros are the zero point; another value is a constant of the same format."""
    x, given = _activation(operands[0]), operands[1]
    assert isinstance(given, Tensor)
    value = float(_activation(operands[2]).q) if len(operands) > 2 else float(output.zero_point)
    before, after = given.reshape(2, -1).tolist()
    return F.pad(x.q, [p for pair in zip(before[::-1], after[::-1], strict=True) for p in pair], value=value)


def _alone(_node: Node, operands: Operands, output: Format, _: Arithmetic) -> Tensor:
    """A Relu or Clip of its own; what it cuts off, the step's limits say."""
    return elementwise.requantized(_activation(operands[0]), output)


def _binary(function: Callable[[Quantized, Quantized, Format, Arithmetic], Tensor]) -> Kernel:
    return lambda _, operands, output, arithmetic: function(
        _activation(operands[0]), _activation(operands[1]), output, arithmetic
    )


def _activation(x: Operand) -> Quantized:
    assert not isinstance(x, Tensor)
    return x.as_quantized() if isinstance(x, Constant) else x


def _weight(x: Operand) -> Constant:
    assert isinstance(x, Constant)
    return x


def _largest(x: Format) -> int:
    """The largest |q - z|."""
    return max(x.high - x.zero_point, x.zero_point - x.low)


KERNELS: Mapping[str, Kernel] = {
    "Add": _binary(ops.add),
    "AveragePool": _pool,
    "Clip": _alone,
    "Concat": _concat,
    "Conv": conv,
    "Gelu": _tabled,
    "Gemm": gemm,
    "GlobalAveragePool": lambda _, operands, output, arithmetic: ops.global_average(
        _activation(operands[0]), output, arithmetic
    ),
    "HardSwish": lambda _node, operands, output, _: elementwise.hard_swish(_activation(operands[0]), output),
    "LeakyRelu": _leaky_relu,
    "MatMul": matmul,
    "Max": _binary(lambda a, b, _format, _: torch.maximum(a.q, b.q)),
    "Min": _binary(lambda a, b, _format, _: torch.minimum(a.q, b.q)),
    "Mul": _binary(ops.multiply),
    "Pad": _pad,
    "ReduceMean": _mean,
    "Relu": _alone,
    "Sigmoid": _sigmoid,
    "Softmax": _softmax,
    "Sub": _binary(ops.subtract),
    "Tanh": _tabled,
}
