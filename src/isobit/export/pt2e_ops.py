"""How each op of a QDQ graph is written as ops of ATen, in the form that PT2E's backends look for."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import fx

from isobit.core.errors import UnsupportedError
from isobit.export.linear_layers import KEEPS_SHAPE
from isobit.export.pt2e_graph import ATEN, DTYPES, Grid, Translation
from isobit.export.pt2e_moves import (
    cast,
    concat,
    cut,
    expand,
    gather,
    pad,
    reshape,
    transpose,
)
from isobit.integer.model import Node
from isobit.integer.values import Constant
from isobit.integer.windows import window_of

Translator = Callable[[Translation, Node], None]


def quantize(t: Translation, node: Node) -> None:
    """quantize_per_tensor; a Clip of the integers becomes its limits."""
    grid = _grid(t, node)
    name, reader = node.outputs[0], t.graph.only_reader(node.outputs[0])
    if reader is not None and reader.op == "Clip":
        ends = [t.fixed(n) if n else None for n in (*reader.inputs[1:3], "", "")[:2]]
        low, high = (None if end is None else int(end) - t.lowered(end.dtype) for end in ends)
        grid = replace(grid, low=grid.low if low is None else low, high=grid.high if high is None else high)
        t.done.add(id(reader))
        name = reader.outputs[0]
    function = torch.ops.quantized_decomposed.quantize_per_tensor.default
    q = t.call(function, (t.read(node.inputs[0], node), *grid.arguments), node)
    t.quantized(name, q, grid)
    kind = t.fixed(node.inputs[2]).dtype if len(node.inputs) > 2 else np.uint8
    t.places.append((q.name, False, t.lowered(kind)))


def dequantize(t: Translation, node: Node) -> None:
    """A weight or bias; or the view of an activation's integers, for which each reader gets an op of its own."""
    if node.attributes.get("block_size"):
        raise UnsupportedError(f"PT2E: {node.name} has scales for groups of weights: export to the format onnx")
    if node.inputs[0] not in t.graph.constants:
        if not t.is_integer(node.inputs[0]):
            raise UnsupportedError(f"PT2E: {node.name} dequantizes what no quantizer wrote")
        _, grid = t.integers(node.inputs[0])
        if replace(_grid(t, node), low=grid.low, high=grid.high) != grid:
            raise UnsupportedError(f"PT2E: {node.name} has another scale than the quantizer before it")
        t.view(node.outputs[0], node.inputs[0])
        return
    q, scale = t.graph.constants[node.inputs[0]], t.fixed(node.inputs[1])
    zero_point = t.fixed(node.inputs[2]) if len(node.inputs) > 2 else np.zeros(scale.shape, q.dtype)
    axis = int(node.attributes.get("axis", 1))
    t.constants[node.outputs[0]] = Constant(q, scale, zero_point, axis if q.ndim else 0)


def conv(t: Translation, node: Node) -> None:
    """conv1d, conv2d or conv3d; pads that differ before and behind become a padding with zeros."""
    weight, bias = _parameters(t, node)
    shape = t.shape(node.inputs[0])
    window = window_of(node, [size or 1 for size in shape], [size or 1 for size in t.shape(node.inputs[1])[2:]])
    pads = list(window.before)
    if window.before == window.after:
        x = t.read(node.inputs[0], node)
    else:
        x = t.padded(node.inputs[0], node, window.torch_pads(len(shape)))
        pads = [0] * len(pads)
    function = {1: ATEN.conv1d.default, 2: ATEN.conv2d.default, 3: ATEN.conv3d.default}[len(pads)]
    groups = int(node.attributes.get("group", 1))
    rest = (list(window.strides), pads, list(window.dilations), groups)
    t.result(node, t.call(function, (x, weight, bias, *rest), node))


def conv_transpose(t: Translation, node: Node) -> None:
    """conv_transpose1d or conv_transpose2d."""
    rank = len(t.shape(node.inputs[0])) - 2
    pads = node.ints("pads", [0] * (2 * rank))
    plain = node.attributes.get("auto_pad", b"NOTSET") == b"NOTSET" and "output_shape" not in node.attributes
    functions = {1: ATEN.conv_transpose1d.default, 2: ATEN.conv_transpose2d.input}
    if rank not in functions or pads[:rank] != pads[rank:] or not plain:
        raise UnsupportedError(f"PT2E: {node.name} is a transposed convolution of a form that ATen has not")
    x, (weight, bias) = t.read(node.inputs[0], node), _parameters(t, node)
    sizes = (node.ints("strides", [1] * rank), pads[:rank], node.ints("output_padding", [0] * rank))
    groups = int(node.attributes.get("group", 1))
    arguments = (x, weight, bias, *sizes, groups, node.ints("dilations", [1] * rank))
    t.result(node, t.call(functions[rank], arguments, node))


def product(t: Translation, node: Node) -> None:
    """linear for a product with a weight and its bias, matmul for one of two activations."""
    if not t.is_constant(node.inputs[1]):
        if node.op == "Gemm":
            raise UnsupportedError(f"PT2E: {node.name} is a Gemm of two activations")
        t.result(node, t.call(ATEN.matmul.default, [t.read(n, node) for n in node.inputs[:2]], node))
        return
    attributes = node.attributes
    plain = attributes.get("alpha", 1.0) == 1.0 and attributes.get("beta", 1.0) == 1.0
    if attributes.get("transA") or not plain or len(t.shape(node.inputs[1])) != 2:
        raise UnsupportedError(f"PT2E: {node.name} ({node.op}) is no product with a matrix of weights")
    result, bias = node.outputs[0], node.inputs[2] if len(node.inputs) > 2 else ""
    adding = t.graph.only_reader(result) if node.op == "MatMul" else None
    if adding is not None and adding.op == "Add":
        other = next((n for n in adding.inputs if n != result), "")
        if t.is_constant(other) and len(t.shape(other)) == 1:
            t.done.add(id(adding))
            result, bias = adding.outputs[0], other
    weight = _weight(t, node, turned=not attributes.get("transB"))
    source = _unfolded(t, node, result)
    t.result(node, t.call(ATEN.linear.default, (t.read(source, node), weight, _bias(t, node, bias)), node), of=result)


def _unfolded(t: Translation, node: Node, result: str) -> str:
    """The input of a product before the Reshape that makes a matrix of it; the one that undoes it behind goes too.

    What stands between the product and that one does the same to each value.
    """
    before, after = t.graph.producers.get(node.inputs[0]), t.graph.only_reader(result)
    while after is not None and after.op in KEEPS_SHAPE:
        after = t.graph.only_reader(after.outputs[0])
    if before is None or after is None or not before.op == after.op == "Reshape":
        return node.inputs[0]
    outer, inner = t.shape(before.inputs[0]), t.shape(node.inputs[0])
    if outer[-1] != inner[-1] or t.shape(after.outputs[0])[:-1] != outer[:-1]:
        return node.inputs[0]
    t.undone.add(id(after))
    return before.inputs[0]


def relu(t: Translation, node: Node) -> None:
    """relu."""
    t.result(node, t.call(ATEN.relu.default, (t.read(node.inputs[0], node),), node))


def clip(t: Translation, node: Node) -> None:
    """hardtanh, which backends fuse, where both limits are given; else clamp."""
    given = [node.attributes.get("min"), node.attributes.get("max")]
    for i, name in enumerate(node.inputs[1:3]):
        given[i] = float(t.fixed(name)) if name else given[i]
    function = ATEN.clamp.default if None in given else ATEN.hardtanh.default
    t.result(node, t.call(function, (t.read(node.inputs[0], node), *given), node))


def smallest(t: Translation, node: Node) -> None:
    """minimum: of integers and their caps, or of floats."""
    if not t.is_integer(node.inputs[0]):
        t.result(node, t.call(ATEN.minimum.default, [t.read(n, node) for n in node.inputs], node))
        return
    x, grid = t.integers(node.inputs[0])
    limits = t.fixed(node.inputs[1])
    lower = t.lowered(limits.dtype)
    caps = t.keep(node.inputs[1], (limits.astype(np.int16) - lower).astype(np.int8) if lower else limits)
    t.quantized(node.outputs[0], t.call(ATEN.minimum.default, (x, caps), node), grid)


def plain(function: Any, *arguments: Any) -> Translator:
    """An op that reads all inputs of the node, and these arguments."""

    def translate(t: Translation, node: Node) -> None:
        t.result(node, t.call(function, (*(t.read(n, node) for n in node.inputs), *arguments), node))

    return translate


def max_pool(t: Translation, node: Node) -> None:
    """max_pool1d or max_pool2d; pads that differ before and behind, and those of ceil_mode, are written out."""
    shape = t.shape(node.inputs[0])
    window = window_of(node, [s or 1 for s in shape], node.ints("kernel_shape", []))
    n, pads = len(window.kernel), list(window.before)
    if n > 2:
        raise UnsupportedError(f"PT2E: {node.name} is a max pooling over {n} dimensions")
    if window.before == window.after and all(p <= k // 2 for p, k in zip(pads, window.kernel, strict=True)):
        x = t.read(node.inputs[0], node)
    else:
        x = t.padded(node.inputs[0], node, window.torch_pads(len(shape)), lowest=True)
        pads = [0] * n
    function = {1: ATEN.max_pool1d.default, 2: ATEN.max_pool2d.default}[n]
    sizes = (list(window.kernel), list(window.strides), pads, list(window.dilations))
    t.result(node, t.call(function, (x, *sizes), node))


def average_pool(t: Translation, node: Node) -> None:
    """avg_pool2d."""
    window, x = _window(t, node)
    if len(window.kernel) != 2 or window.before != window.after or set(window.dilations) != {1}:
        raise UnsupportedError(f"PT2E: {node.name} is an average pooling of a form that ATen has not")
    sizes = [list(s) for s in (window.kernel, window.strides, window.before)]
    t.result(node, t.call(ATEN.avg_pool2d.default, (x, *sizes, False, window.include_pad), node))


def global_average(t: Translation, node: Node) -> None:
    """adaptive_avg_pool2d to one pixel."""
    rank = len(t.shape(node.inputs[0])) - 2
    x = t.read(node.inputs[0], node)
    if rank == 2:
        y = t.call(ATEN.adaptive_avg_pool2d.default, (x, [1, 1]), node)
    else:
        y = t.call(ATEN.mean.dim, (x, list(range(-rank, 0)), True), node)
    t.result(node, y)


def reduce_mean(t: Translation, node: Node) -> None:
    """mean over given axes."""
    axes = t.fixed(node.inputs[1]).tolist() if len(node.inputs) > 1 else node.ints("axes", [])
    keep = bool(node.attributes.get("keepdims", 1))
    t.result(node, t.call(ATEN.mean.dim, (t.read(node.inputs[0], node), [int(a) for a in axes], keep), node))


def softmax(t: Translation, node: Node) -> None:
    """softmax."""
    axis = int(node.attributes.get("axis", -1))
    t.result(node, t.call(ATEN.softmax.int, (t.read(node.inputs[0], node), axis), node))


def layer_norm(t: Translation, node: Node) -> None:
    """layer_norm over the axes from the node's on."""
    shape = t.shape(node.inputs[0])
    axis = int(node.attributes.get("axis", -1)) % len(shape)
    x, weight, *bias = (t.read(n, node) for n in node.inputs)
    epsilon = float(node.attributes.get("epsilon", 1e-5))
    arguments = (x, list(shape[axis:]), weight, bias[0] if bias else None, epsilon)
    t.result(node, t.call(ATEN.layer_norm.default, arguments, node))


def batch_norm(t: Translation, node: Node) -> None:
    """batch_norm with the statistics that it has."""
    x, weight, bias, mean, variance = (t.read(n, node) for n in node.inputs)
    epsilon = float(node.attributes.get("epsilon", 1e-5))
    arguments = (x, weight, bias, mean, variance, False, 0.1, epsilon, False)
    t.result(node, t.call(ATEN.batch_norm.default, arguments, node))


def gelu(t: Translation, node: Node) -> None:
    """gelu."""
    kind = node.attributes.get("approximate", b"none").decode()
    x = t.read(node.inputs[0], node)
    y = t.fx.create_node("call_function", ATEN.gelu.default, (x,), {"approximate": kind}, name=node.name)
    t.result(node, y)


def leaky_relu(t: Translation, node: Node) -> None:
    """leaky_relu."""
    slope = float(node.attributes.get("alpha", 0.01))
    t.result(node, t.call(ATEN.leaky_relu.default, (t.read(node.inputs[0], node), slope), node))


def hard_sigmoid(t: Translation, node: Node) -> None:
    """hardsigmoid, which is that with a slope of 1/6."""
    if abs(node.attributes.get("alpha", 0.2) - 1 / 6) > 1e-6 or node.attributes.get("beta", 0.5) != 0.5:
        raise UnsupportedError(f"PT2E: {node.name} is a HardSigmoid with another slope than 1/6")
    t.result(node, t.call(ATEN.hardsigmoid.default, (t.read(node.inputs[0], node),), node))


def _grid(t: Translation, node: Node) -> Grid:
    """The grid of an activation. Raises UnsupportedError for one that has several scales, or computed ones."""
    if any(name not in t.graph.constants for name in node.inputs[1:] if name):
        raise UnsupportedError(f"PT2E: {node.name} has a scale that is computed while the network runs")
    scale = t.fixed(node.inputs[1])
    zero_point = t.fixed(node.inputs[2]) if len(node.inputs) > 2 else np.zeros((), np.uint8)
    if scale.size != 1 or zero_point.dtype not in DTYPES:
        raise UnsupportedError(f"PT2E: {node.name} has {scale.size} scales, or integers of {zero_point.dtype}")
    limits = np.iinfo(zero_point.dtype)
    place = int(zero_point.reshape(-1)[0])
    ends = int(limits.min), int(limits.max)
    grid = Grid(float(scale.reshape(-1)[0]), place, *ends, DTYPES[zero_point.dtype])
    return grid.lowered if t.lowered(zero_point.dtype) else grid


def _window(t: Translation, node: Node) -> tuple[Any, fx.Node]:
    shape = t.shape(node.inputs[0])
    return window_of(node, [s or 1 for s in shape], node.ints("kernel_shape", [])), t.read(node.inputs[0], node)


def _parameters(t: Translation, node: Node) -> tuple[fx.Node, fx.Node | None]:
    return _weight(t, node), _bias(t, node, node.inputs[2] if len(node.inputs) > 2 else "")


def _weight(t: Translation, node: Node, *, turned: bool = False) -> fx.Node:
    """The weight of a layer, under its name; with `turned`, its two dimensions change places."""
    name = node.inputs[1]
    if name in t.constants:
        weight = t.constants[name].transposed([1, 0]) if turned else t.constants[name]
        return t.dequantized(weight, f"{node.name}.weight", f"{node.name}_weight".replace(".", "_"))
    if not t.is_constant(name):
        raise UnsupportedError(f"PT2E: {node.name} ({node.op}) has a weight that is computed")
    data = t.fixed(name)
    return t.keep(f"{node.name}.weight", data.T if turned else data)


def _bias(t: Translation, node: Node, name: str) -> fx.Node | None:
    return t.keep(f"{node.name}.bias", t.fixed(name).astype(np.float32)) if name else None


OPS: Mapping[str, Translator] = {
    "Add": plain(ATEN.add.Tensor),
    "AveragePool": average_pool,
    "BatchNormalization": batch_norm,
    "Cast": cast,
    "Clip": clip,
    "Concat": concat,
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "DequantizeLinear": dequantize,
    "Div": plain(ATEN.div.Tensor),
    "Equal": plain(ATEN.eq.Tensor),
    "Erf": plain(ATEN.erf.default),
    "Expand": expand,
    "Flatten": reshape,
    "Gather": gather,
    "Gelu": gelu,
    "Gemm": product,
    "GlobalAveragePool": global_average,
    "HardSigmoid": hard_sigmoid,
    "HardSwish": plain(ATEN.hardswish.default),
    "Identity": plain(ATEN.alias.default),
    "IsNaN": plain(ATEN.isnan.default),
    "LayerNormalization": layer_norm,
    "LeakyRelu": leaky_relu,
    "MatMul": product,
    "MaxPool": max_pool,
    "Min": smallest,
    "Mul": plain(ATEN.mul.Tensor),
    "Pad": pad,
    "QuantizeLinear": quantize,
    "ReduceMean": reduce_mean,
    "Relu": relu,
    "Reshape": reshape,
    "Sigmoid": plain(ATEN.sigmoid.default),
    "Slice": cut,
    "Softmax": softmax,
    "Sqrt": plain(ATEN.sqrt.default),
    "Squeeze": reshape,
    "Sub": plain(ATEN.sub.Tensor),
    "Tanh": plain(ATEN.tanh.default),
    "Transpose": transpose,
    "Unsqueeze": reshape,
    "Where": plain(ATEN.where.self),
}
"""Translators by ONNX op."""
