"""How the ops of transformers are written as ops of LiteRT; all but moves of integers compute in float."""

from typing import Any

import numpy as np
import onnx

from isobit.core.errors import UnsupportedError
from isobit.export.litert_builder import Shape
from isobit.export.litert_graph import Call, Translation, Value


def select(t: Translation, call: Call) -> Value:
    """STRIDED_SLICE and RESHAPE for one constant index, GATHER for rows of a constant: an embedding."""
    node = call.node
    axis = int(node.attributes.get("axis", 0))
    if node.inputs[1] in t.graph.constants:
        return _one_index(t, call, axis, t.graph.constants[node.inputs[1]])
    table = t.operand(node.inputs[0], integer=False)
    index = t.laid_out(t.operand(node.inputs[1], integer=False), channels_last=False)
    y = t.result(call.result, None, channels_last=False)
    t.builder.op("GATHER", [table.index, index.index], [y.index], version=2, axis=axis, batchDims=0)
    return y


def _one_index(t: Translation, call: Call, axis: int, index: np.ndarray) -> Value:
    x = t.laid_out(t.operand(call.node.inputs[0], integer=call.integer), channels_last=False)
    rank = len(x.shape)
    if index.size != 1 or x.shape[axis % rank] is None:
        raise UnsupportedError(f"LiteRT: {call.node.name} gathers several constant indices, or along the batch")
    place, size = int(index.reshape(-1)[0]), x.shape[axis % rank]
    assert size is not None
    begin, end = np.zeros(rank, np.int32), np.zeros(rank, np.int32)
    begin[axis % rank] = place % size
    end[axis % rank] = place % size + 1
    kept = tuple(1 if i == axis % rank else s for i, s in enumerate(x.shape))
    cut = t.scratch(f"{call.result}/cut", kept, x.format, channels_last=False)
    limits = [
        t.builder.constant(f"{cut.name}/{word}", values)
        for word, values in (("begin", begin), ("end", end), ("strides", np.ones(rank, np.int32)))
    ]
    mask = sum(1 << i for i in range(rank) if i != axis % rank)
    t.builder.op("STRIDED_SLICE", [x.index, *limits], [cut.index], version=2, beginMask=mask, endMask=mask)
    y = t.result(call.result, x.format, channels_last=False)
    t.reshape(cut, y)
    return y


def expand(t: Translation, call: Call) -> Value:
    """A constant once for each sample: it is added to zeros that have the batch of an input."""
    x = t.operand(call.node.inputs[0], integer=False)
    shape = t.shape(call.result)
    anchor = next((t.values[n] for n in t.graph.inputs if t.values[n].dtype == np.float32), None)
    if x.constant is None or x.shape != (1, *shape[1:]) or shape[0] is not None or anchor is None:
        raise UnsupportedError(f"LiteRT: {call.node.name} spreads something else than a constant over the batch")
    rank = len(anchor.shape)
    ones = np.ones(rank, np.int32)
    limits = [
        t.builder.constant(f"{call.result}/{word}", values)
        for word, values in (("begin", np.zeros(rank, np.int32)), ("end", ones), ("strides", ones))
    ]
    first = t.scratch(f"{call.result}/first", (None, *[1] * (rank - 1)), None)
    t.builder.op("STRIDED_SLICE", [anchor.index, *limits], [first.index], beginMask=1, endMask=1)
    column = t.scratch(f"{call.result}/column", (None, *[1] * (len(shape) - 1)), None)
    t.reshape(first, column)
    zeros = t.scratch(f"{call.result}/zeros", column.shape, None)
    zero = t.builder.constant("zero", np.zeros((), np.float32))
    t.builder.op("MUL", [column.index, zero], [zeros.index])
    y = t.result(call.result, None, channels_last=False)
    t.builder.op("ADD", [zeros.index, x.index], [y.index])
    return y


def cast(t: Translation, call: Call) -> Value:
    """CAST."""
    kind = onnx.helper.tensor_dtype_to_np_dtype(int(call.node.attributes["to"]))
    x = t.operand(call.node.inputs[0], integer=False)
    y = t.result(call.result, None, channels_last=x.channels_last, dtype=kind)
    t.builder.op("CAST", [x.index], [y.index])
    return y


def choose(t: Translation, call: Call) -> Value:
    """SELECT_V2, for Where."""
    values = [t.laid_out(t.operand(n, integer=False), channels_last=False) for n in call.node.inputs]
    y = t.result(call.result, None, channels_last=False)
    t.builder.op("SELECT_V2", [v.index for v in values], [y.index])
    return y


def is_nan(t: Translation, call: Call) -> Value:
    """NOT_EQUAL of a tensor and itself."""
    x = t.operand(call.node.inputs[0], integer=False)
    y = t.result(call.result, None, channels_last=x.channels_last, dtype=np.bool_)
    t.builder.op("NOT_EQUAL", [x.index, x.index], [y.index])
    return y


def softmax(t: Translation, call: Call) -> Value:
    """SOFTMAX over the last dimension."""
    x = t.laid_out(t.operand(call.node.inputs[0], integer=False), channels_last=False)
    if int(call.node.attributes.get("axis", -1)) % len(x.shape) != len(x.shape) - 1:
        raise UnsupportedError(f"LiteRT: {call.node.name} is a softmax over another dimension than the last")
    y = t.result(call.result, None, channels_last=False)
    t.builder.op("SOFTMAX", [x.index], [y.index], beta=1.0)
    return y


def layer_norm(t: Translation, call: Call) -> Value:
    """(x - mean) / sqrt(variance + ε) · γ + β over the last dimension, op by op."""
    node = call.node
    x = t.laid_out(t.operand(node.inputs[0], integer=False), channels_last=False)
    if int(node.attributes.get("axis", -1)) % len(x.shape) != len(x.shape) - 1:
        raise UnsupportedError(f"LiteRT: {node.name} normalizes more than the last dimension")
    narrow = (*x.shape[:-1], 1)
    axis = t.builder.constant("last_axis", np.array([len(x.shape) - 1], np.int32))

    def step(kind: str, inputs: list[int], word: str, shape: Shape, **options: Any) -> int:
        y = t.scratch(f"{call.result}/{word}", shape, None)
        t.builder.op(kind, inputs, [y.index], **options)
        return y.index

    mean = step("MEAN", [x.index, axis], "mean", narrow, keepDims=True)
    centred = step("SUB", [x.index, mean], "centred", x.shape)
    square = step("MUL", [centred, centred], "square", x.shape)
    variance = step("MEAN", [square, axis], "variance", narrow, keepDims=True)
    epsilon = t.builder.constant("epsilon", np.array(node.attributes.get("epsilon", 1e-5), np.float32))
    deviation = step("RSQRT", [step("ADD", [variance, epsilon], "shifted", narrow)], "deviation", narrow)
    normal = step("MUL", [centred, deviation], "normal", x.shape)
    gamma = t.builder.constant(node.inputs[1], t.floats(node.inputs[1]))
    if len(node.inputs) > 2:
        normal = step("MUL", [normal, gamma], "scaled", x.shape)
        beta = t.builder.constant(node.inputs[2], t.floats(node.inputs[2]))
        y = t.result(call.result, None, channels_last=False)
        t.builder.op("ADD", [normal, beta], [y.index])
        return y
    y = t.result(call.result, None, channels_last=False)
    t.builder.op("MUL", [normal, gamma], [y.index])
    return y
