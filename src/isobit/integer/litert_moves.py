"""What the ops of LiteRT that move, select or reshape mean, in nodes of a QDQ graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import TensorProto, helper

from isobit.core.errors import UnsupportedError

if TYPE_CHECKING:
    from isobit.integer.litert import Reading

TO_FIRST, TO_LAST = [0, 3, 1, 2], [0, 2, 3, 1]
LARGEST = np.iinfo(np.int64).max

Ints = np.ndarray
"""Numbers along the dimensions."""


def concat(r: Reading, op: Any) -> None:
    """CONCATENATION."""
    plain(r, op, "Concat", [r.operand(i) for i in op.inputs], axis=int(op.builtinOptions.axis))


def pad(r: Reading, op: Any) -> None:
    """PAD with zeros, PADV2 with a constant."""
    pads = r.fixed(op.inputs[1]).astype(np.int64).T.reshape(-1)
    values = [r.operand(op.inputs[0]), r.initializer(f"{r.names[op.outputs[0]]}/pads", pads)]
    values += [r.operand(op.inputs[2])] if len(op.inputs) > 2 else []
    plain(r, op, "Pad", values)


def to_shape_of_result(r: Reading, op: Any) -> None:
    """SQUEEZE and EXPAND_DIMS."""
    _reshaped(r, op, None)


def reshape(r: Reading, op: Any) -> None:
    """RESHAPE: to a constant shape, or to that of the result."""
    if len(op.inputs) > 1:
        _reshaped(r, op, r.data(op.inputs[1]))
    else:
        _reshaped(r, op, None if op.builtinOptions is None else np.asarray(op.builtinOptions.newShape))


def _reshaped(r: Reading, op: Any, given: np.ndarray | None) -> None:
    tensor = r.graph.tensors[op.outputs[0]]
    sizes = tensor.shapeSignature if tensor.shapeSignature is not None else tensor.shape
    shape = np.asarray(sizes if given is None else given, np.int64).reshape(-1)
    y = r.names[op.outputs[0]]
    if (shape < 0).sum() < 2:
        name = r.initializer(f"{y}/shape", shape)
    elif len(op.inputs) > 1:
        name = r.add("Cast", [r.operand(op.inputs[1])], f"{y}/shape", to=TensorProto.INT64)
    else:
        raise UnsupportedError(f"{y}: what shape this RESHAPE makes is not said in the file")
    plain(r, op, "Reshape", [r.operand(op.inputs[0]), name], allowzero=1)


def transpose(r: Reading, op: Any) -> None:
    """TRANSPOSE."""
    plain(r, op, "Transpose", [r.operand(op.inputs[0])], perm=[int(i) for i in r.fixed(op.inputs[1])])


def strided_slice(r: Reading, op: Any) -> None:
    """STRIDED_SLICE, which may drop dimensions."""
    options, y = op.builtinOptions, r.names[op.outputs[0]]
    if options.ellipsisMask or options.newAxisMask:
        raise UnsupportedError(f"{y}: a STRIDED_SLICE that adds dimensions has no rule here")
    begin, end, strides = (r.fixed(i).astype(np.int64).reshape(-1) for i in op.inputs[1:4])
    places = 1 << np.arange(len(begin))
    begin = np.where(places & options.beginMask, np.where(strides > 0, 0, LARGEST), begin)
    end = np.where(places & options.endMask, np.where(strides > 0, LARGEST, -LARGEST), end)
    dropped = (places & options.shrinkAxisMask) != 0
    end = np.where(dropped, np.where(begin == -1, LARGEST, begin + 1), end)
    value = _cut(r, r.operand(op.inputs[0]), f"{y}/slice", begin, end, np.arange(len(begin)), strides)
    if dropped.any():
        value = r.add("Squeeze", [value, r.initializer(f"{y}/dropped", np.flatnonzero(dropped))], f"{y}/squeeze")
    r.store(value, op.outputs[0])


def slice_of_size(r: Reading, op: Any) -> None:
    """SLICE: a begin and a size for each dimension, -1 for all that is left."""
    begin, size = (r.fixed(i).astype(np.int64).reshape(-1) for i in op.inputs[1:3])
    y = r.names[op.outputs[0]]
    end = np.where(size < 0, LARGEST, begin + size)
    r.store(_cut(r, r.operand(op.inputs[0]), f"{y}/slice", begin, end, np.arange(len(begin))), op.outputs[0])


def split(r: Reading, op: Any) -> None:
    """SPLIT into equal parts: one Slice for each."""
    axis, x = int(r.fixed(op.inputs[0]).reshape(-1)[0]) % r.rank(op.inputs[1]), op.inputs[1]
    size = int(r.graph.tensors[x].shape[axis])
    if size % len(op.outputs):
        raise UnsupportedError(f"{r.names[x]}: a SPLIT into unequal parts has no rule here")
    part = size // len(op.outputs)
    for i, y in enumerate(op.outputs):
        ends = (np.array([v], np.int64) for v in (i * part, (i + 1) * part, axis))
        r.store(_cut(r, r.operand(x), f"{r.names[y]}/part", *ends), y)


def _cut(r: Reading, value: str, name: str, begin: Ints, end: Ints, axes: Ints, steps: Ints | None = None) -> str:
    words = {"begin": begin, "end": end, "axes": axes, "steps": np.ones_like(begin) if steps is None else steps}
    names = [r.initializer(f"{name}/{word}", values.astype(np.int64)) for word, values in words.items()]
    return r.add("Slice", [value, *names], name)


def pack(r: Reading, op: Any) -> None:
    """PACK: each operand gets a dimension, along which they are joined."""
    y, axis = r.names[op.outputs[0]], int(op.builtinOptions.axis)
    place = r.initializer(f"{y}/axis", np.array([axis], np.int64))
    parts = [r.add("Unsqueeze", [r.operand(x), place], f"{y}/part{i}") for i, x in enumerate(op.inputs)]
    plain(r, op, "Concat", parts, axis=axis)


def shape(r: Reading, op: Any) -> None:
    """SHAPE."""
    y = r.names[op.outputs[0]]
    sizes = r.add("Shape", [r.operand(op.inputs[0])], f"{y}/sizes")
    plain(r, op, "Cast", [sizes], to=helper.np_dtype_to_tensor_dtype(r.dtype(op.outputs[0])))


def arg_max(r: Reading, op: Any) -> None:
    """ARG_MAX."""
    y = r.names[op.outputs[0]]
    axis = int(r.fixed(op.inputs[1]).reshape(-1)[0])
    found = r.add("ArgMax", [r.operand(op.inputs[0])], f"{y}/place", name=y, axis=axis, keepdims=0)
    plain(r, op, "Cast", [found], to=helper.np_dtype_to_tensor_dtype(r.dtype(op.outputs[0])))


def blocks(kind: str) -> Callable[[Reading, Any], None]:
    """DEPTH_TO_SPACE and SPACE_TO_DEPTH."""

    def read(r: Reading, op: Any) -> None:
        value, y = first(r, r.operand(op.inputs[0])), r.names[op.outputs[0]]
        r.store(
            last(r, r.add(kind, [value], f"{y}/blocks", name=y, blocksize=op.builtinOptions.blockSize)), op.outputs[0]
        )

    return read


def resize(mode: str) -> Callable[[Reading, Any], None]:
    """RESIZE_NEAREST_NEIGHBOR and RESIZE_BILINEAR, to fixed sizes."""

    def read(r: Reading, op: Any) -> None:
        options, x, y = op.builtinOptions, op.inputs[0], r.names[op.outputs[0]]
        kind = "align_corners" if options.alignCorners else "half_pixel" if options.halfPixelCenters else "asymmetric"
        rounded = {"align_corners": "round_prefer_ceil", "half_pixel": "round_prefer_ceil", "asymmetric": "floor"}[kind]
        before = [int(n) for n in r.graph.tensors[x].shape[1:3]]
        scales = [1.0, 1.0, *(int(n) / b for n, b in zip(r.fixed(op.inputs[1]), before, strict=True))]
        names = [first(r, r.operand(x)), "", r.initializer(f"{y}/scales", np.array(scales, np.float32))]
        value = r.add(
            "Resize", names, f"{y}/resize", name=y, mode=mode, coordinate_transformation_mode=kind, nearest_mode=rounded
        )
        r.store(last(r, value), op.outputs[0])

    return read


def gather(r: Reading, op: Any) -> None:
    """GATHER."""
    if op.builtinOptions.batchDims:
        raise UnsupportedError(f"{r.names[op.outputs[0]]}: a GATHER for each sample has no rule here")
    plain(r, op, "Gather", [r.operand(i) for i in op.inputs], axis=int(op.builtinOptions.axis))


def cast(r: Reading, op: Any) -> None:
    """CAST."""
    kind = helper.np_dtype_to_tensor_dtype(r.dtype(op.outputs[0]))
    plain(r, op, "Cast", [r.operand(op.inputs[0])], to=kind)


def plain(r: Reading, op: Any, kind: str, values: list[str], **attributes: Any) -> None:
    """One node, whose result is the op's."""
    y = r.names[op.outputs[0]]
    r.store(r.add(kind, values, f"{y}/{kind.lower()}", name=y, **attributes), op.outputs[0])


def first(r: Reading, value: str) -> str:
    """An image in ONNX's order."""
    name = f"{value}/channels_first"
    if any(name in n.output for n in r.nodes):
        return name
    return r.add("Transpose", [value], name, perm=TO_FIRST)


def last(r: Reading, value: str) -> str:
    """An image in LiteRT's order."""
    return r.add("Transpose", [value], f"{value}/channels_last", perm=TO_LAST)
