"""Ops with weights: they become the layers of torch.nn."""

import operator
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isobit.core.errors import UnsupportedError
from isobit.graph.from_onnx.builder import Builder, dtype_of, fixed_shape, rank
from isobit.graph.from_onnx.op import Op, is_dynamic
from isobit.graph.from_onnx.padding import padded, window_of
from isobit.graph.from_onnx.values import Value

_CONV: tuple[type[nn.Module], ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_CONV_TRANSPOSE: tuple[type[nn.Module], ...] = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_BATCH_NORM: tuple[type[nn.Module], ...] = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def conv(b: Builder, op: Op) -> Value:
    """Conv in 1, 2 or 3 dimensions; padding that is not the same on both sides is a pad in front of it."""
    x, weight, bias = op.needed(0), op.constant(1), op.constant(2)
    dims = rank(op.needed(1)) - 2
    if dims not in (1, 2, 3):
        raise UnsupportedError(f"it has {dims} spatial dimensions; 1, 2 and 3 are supported")
    if bias is not None and not op.names[2].endswith("bias") and not bool(bias.any()):
        bias = None  # torch.onnx.export makes up zeros where a layer has none
    window = window_of(op, x, fixed_shape(op.needed(1), 2))
    groups = int(op.number("group", 1))
    x, padding = padded(b, x, window)
    if weight is None or is_dynamic(op.input(2)):
        function = (F.conv1d, F.conv2d, F.conv3d)[dims - 1]
        return b.call(function, x, op.needed(1), op.input(2), window.stride, padding, window.dilation, groups)
    layer = _CONV[dims - 1](
        weight.shape[1] * groups, weight.shape[0], window.kernel, stride=window.stride, padding=padding,
        dilation=window.dilation, groups=groups, bias=bias is not None, device="meta",
    )  # fmt: skip
    return b.layer(op, filled(layer, weight=weight, bias=bias), x)


def conv_transpose(b: Builder, op: Op) -> Value:
    """ConvTranspose; uneven padding, which takes from the result, is a slice behind it."""
    x, weight, bias = op.needed(0), op.constant(1), op.constant(2)
    if weight is None or (op.input(2) is not None and bias is None):
        raise UnsupportedError("its weight is computed; only constant ones are supported")
    dims, groups = weight.dim() - 2, int(op.number("group", 1))
    if dims not in (1, 2, 3):
        raise UnsupportedError(f"it has {dims} spatial dimensions; 1, 2 and 3 are supported")
    kernel, ones = tuple(weight.shape[2:]), (1,) * dims
    stride, dilation = tuple(op.ints("strides", ones)), tuple(op.ints("dilations", ones))
    extra = tuple(op.ints("output_padding", (0,) * dims))
    pads = _taken_off(op, x, kernel, stride, dilation, extra)
    even = all(begin == end for begin, end in pads)
    beyond = any(e >= max(s, d) for e, s, d in zip(extra, stride, dilation, strict=True))
    if beyond:
        raise UnsupportedError("its output_padding is not smaller than its stride or dilation")
    layer = _CONV_TRANSPOSE[dims - 1](
        weight.shape[0], weight.shape[1] * groups, kernel, stride=stride,
        padding=tuple(begin for begin, _ in pads) if even else (0,) * dims, output_padding=extra, groups=groups,
        dilation=dilation, bias=bias is not None, device="meta",
    )  # fmt: skip
    out = b.layer(op, filled(layer, weight=weight, bias=bias), x)
    if even:
        return out
    if any(side < 0 for pair in pads for side in pair):
        raise UnsupportedError("it adds to its result where others take off: its pads are negative")
    parts = tuple(slice(begin, -end if end else None) for begin, end in pads)
    return b.call(operator.getitem, out, (Ellipsis, *parts))


def _taken_off(
    op: Op,
    x: Value,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
    extra: tuple[int, ...],
) -> list[tuple[int, int]]:
    """How much of the full result is cut, at the begin and at the end of each axis."""
    dims = len(kernel)
    auto, wanted = op.text("auto_pad", "NOTSET"), op.ints("output_shape")[-dims:]
    if auto == "VALID" or (auto == "NOTSET" and not wanted):
        pads = op.ints("pads", (0,) * 2 * dims) if auto == "NOTSET" else [0] * 2 * dims
        return list(zip(pads[:dims], pads[dims:], strict=True))
    lengths = fixed_shape(x, 2)
    wanted = wanted or [n * s for n, s in zip(lengths, stride, strict=True)]
    found = []
    for n, s, e, k, d, out in zip(lengths, stride, extra, kernel, dilation, wanted, strict=True):
        total = s * (n - 1) + e + (k - 1) * d + 1 - out
        small = total // 2
        found.append((small, total - small) if auto == "SAME_UPPER" else (total - small, small))
    return found


def gemm(b: Builder, op: Op) -> Value:
    """α A B + β C: a linear layer where B and C are constants."""
    a, weight, c = op.needed(0), op.needed(1), op.input(2)
    alpha, beta = float(op.number("alpha", 1.0)), float(op.number("beta", 1.0))
    if op.flag("transA"):
        a = b.method("t", a)
    bias = op.constant(2)
    if isinstance(weight, Tensor) and (c is None or (bias is not None and _is_row(bias))):
        matrix = weight if op.flag("transB") else weight.t()
        out = matrix.shape[0]
        row = None if bias is None else (bias.reshape(-1) * beta).expand(out)
        return linear(b, op, a, matrix * alpha if alpha != 1 else matrix, row)
    product = b.call(torch.matmul, a, b.method("t", weight) if op.flag("transB") else weight)
    product = b.call(torch.mul, product, alpha) if alpha != 1 else product
    if c is None:
        return product
    return b.call(torch.add, product, c if beta == 1 else b.call(torch.mul, c, beta))


def _is_row(bias: Tensor) -> bool:
    return bias.numel() == 1 or bias.numel() == bias.shape[-1]


def matmul(b: Builder, op: Op) -> Value:
    """A product with a constant matrix is a linear layer, any other stays a product."""
    x, weight = op.needed(0), op.constant(1)
    if weight is not None and weight.dim() == 2 and is_dynamic(x) and weight.is_floating_point():
        return linear(b, op, x, weight.t(), None)
    return b.call(torch.matmul, x, op.needed(1))


def linear(b: Builder, op: Op, x: Value, weight: Tensor, bias: Tensor | None) -> Value:
    """x Wᵀ + b."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    return b.layer(op, filled(layer, weight=weight, bias=bias), x)


def batch_norm(b: Builder, op: Op) -> Value:
    """BatchNormalization with the statistics of the file."""
    if op.flag("training_mode"):
        raise UnsupportedError("it is in training mode. Export the network in eval mode")
    x, dims = op.needed(0), rank(op.needed(0))
    found = [op.constant(i) for i in range(1, 5)]
    if any(t is None for t in found) or dims not in (2, 3, 4, 5):
        raise UnsupportedError("its statistics are computed, or its input has more than 5 dimensions")
    weight, bias, mean, variance = found
    assert weight is not None
    layer = _BATCH_NORM[dims - 2](weight.shape[0], eps=float(op.number("epsilon", 1e-5)))
    return b.layer(op, filled(layer, weight=weight, bias=bias, running_mean=mean, running_var=variance), x)


def layer_norm(b: Builder, op: Op) -> Value:
    """LayerNormalization over the last axes."""
    x, weight, bias = op.needed(0), op.constant(1), op.constant(2)
    axis = int(op.number("axis", -1)) % rank(x)
    if any(op.outputs[1:]):
        raise UnsupportedError("its mean or deviation is read; only the normalized result is supported")
    shape = fixed_shape(x, axis)
    eps = float(op.number("epsilon", 1e-5))
    if weight is None or (op.input(2) is not None and bias is None):
        raise UnsupportedError("its scale is computed; only constant ones are supported")
    layer = nn.LayerNorm(shape, eps=eps, bias=bias is not None, device="meta")
    weight, bias = (None if t is None else t.expand(shape) for t in (weight, bias))
    return b.layer(op, filled(layer, weight=weight, bias=bias), x)


def rms_norm(b: Builder, op: Op) -> Value:
    """RMSNormalization over the last axes."""
    x, weight = op.needed(0), op.constant(1)
    axis = int(op.number("axis", -1)) % rank(x)
    if weight is None:
        raise UnsupportedError("its scale is computed; only constant ones are supported")
    shape = fixed_shape(x, axis)
    layer = nn.RMSNorm(shape, eps=float(op.number("epsilon", 1e-5)), device="meta")
    return b.layer(op, filled(layer, weight=weight.expand(shape)), x)


def group_norm(b: Builder, op: Op) -> Value:
    """GroupNormalization, whose scale has one entry for each channel from opset 21 on, before that for each group."""
    x, weight, bias = op.needed(0), op.constant(1), op.constant(2)
    if weight is None or bias is None:
        raise UnsupportedError("its scale or bias is computed; only constant ones are supported")
    groups, channels = int(op.number("num_groups")), fixed_shape(x)[1] if isinstance(x, Tensor) else _channels(b, x)
    layer = nn.GroupNorm(groups, channels, eps=float(op.number("epsilon", 1e-5)), device="meta")
    repeats = channels // weight.numel()
    weight, bias = weight.repeat_interleave(repeats), bias.repeat_interleave(repeats)
    return b.layer(op, filled(layer, weight=weight, bias=bias), x)


def instance_norm(b: Builder, op: Op) -> Value:
    """InstanceNormalization."""
    x, weight, bias = op.needed(0), op.constant(1), op.constant(2)
    dims = rank(x)
    if weight is None or bias is None or dims not in (3, 4, 5):
        raise UnsupportedError("its scale or bias is computed, or its input has not 3 to 5 dimensions")
    kind = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)[dims - 3]
    layer = kind(weight.numel(), eps=float(op.number("epsilon", 1e-5)), affine=True, device="meta")
    return b.layer(op, filled(layer, weight=weight, bias=bias), x)


def _channels(b: Builder, x: Value) -> int:
    found = b.size(x, 1)
    if not isinstance(found, int):
        raise UnsupportedError("its number of channels is free in the file")
    return found


def prelu(b: Builder, op: Op) -> Value:
    """PRelu with one slope, or one for each channel; other shapes are computed."""
    x, slope = op.needed(0), op.constant(1)
    per_channel = slope is not None and slope.numel() in (1, slope.shape[0] if slope.dim() else 1)
    aligned = slope is not None and (slope.numel() == 1 or slope.dim() == rank(x) - 1 or rank(x) == 2)
    if slope is None or not per_channel or not aligned or rank(x) < 2:
        negative = b.call(torch.mul, b.call(torch.clamp, x, None, 0.0), op.needed(1))
        return b.call(torch.add, b.call(torch.relu, x), negative)
    return b.layer(op, filled(nn.PReLU(slope.numel(), device="meta"), weight=slope.reshape(-1)), x)


def gather(b: Builder, op: Op) -> Value:
    """Rows of a constant table become an embedding; one position, or several, of something computed are picked."""
    x, index = op.needed(0), op.needed(1)
    axis = int(op.number("axis", 0)) % rank(x)
    if isinstance(x, Tensor) and is_dynamic(index) and x.dim() == 2 and axis == 0 and x.is_floating_point():
        return b.layer(op, nn.Embedding(x.shape[0], x.shape[1], _weight=x), index)
    if isinstance(index, Tensor) and index.dim() == 0:
        return b.method("select", x, axis, int(index))
    if isinstance(index, Tensor):
        length = b.size(x, axis)
        if isinstance(length, int):
            index = torch.where(index < 0, index + length, index)
        elif bool((index < 0).any()):
            raise UnsupportedError("it counts from the end of an axis that the file leaves free")
        index = index.long()
    elif isinstance(index, (int,)) or not is_dynamic(index):
        raise UnsupportedError("it picks a position that depends on a size that the file leaves free")
    elif dtype_of(index) not in (torch.int32, torch.int64):
        raise UnsupportedError("its positions are no integers")
    flat = b.call(torch.flatten, index) if rank(index) != 1 else index
    picked = b.call(torch.index_select, x, axis, flat)
    if rank(index) == 1:
        return picked
    before = [b.size(x, i) for i in range(rank(x))]
    shape = (*before[:axis], *b.shape(index), *before[axis + 1 :])
    return b.method("reshape", picked, shape)


def filled(layer: nn.Module, **tensors: Tensor | None) -> nn.Module:
    """`layer` with these parameters and buffers, in copies of their own."""
    for name, value in tensors.items():
        if value is None:
            continue
        own = value.detach().clone(memory_format=torch.contiguous_format)
        if name in layer._buffers:
            layer._buffers[name] = own
        else:
            layer._parameters[name] = nn.Parameter(own)
    return layer


def lrn(b: Builder, op: Op) -> Value:
    """Local response normalization across channels."""
    layer = nn.LocalResponseNorm(
        int(op.number("size")),
        alpha=float(op.number("alpha", 1e-4)),
        beta=float(op.number("beta", 0.75)),
        k=float(op.number("bias", 1.0)),
    )
    return b.layer(op, layer, op.needed(0))


OPS: Mapping[str, Callable[[Builder, Op], Value]] = {
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "Gemm": gemm,
    "MatMul": matmul,
    "BatchNormalization": batch_norm,
    "LayerNormalization": layer_norm,
    "RMSNormalization": rms_norm,
    "GroupNormalization": group_norm,
    "InstanceNormalization": instance_norm,
    "PRelu": prelu,
    "Gather": gather,
    "LRN": lrn,
}
"""Ops with weights."""
