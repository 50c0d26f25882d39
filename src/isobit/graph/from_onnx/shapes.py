"""Ops that move values: reshape, transpose, concat, split, slice, expand."""

import operator
from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any

import torch
from torch import Tensor, fx

from isobit.core.errors import UnsupportedError
from isobit.graph.from_onnx import sizes
from isobit.graph.from_onnx.batch import fixed_to_free
from isobit.graph.from_onnx.builder import EXAMPLES, Builder, dtype_of, is_free, rank
from isobit.graph.from_onnx.op import Op, is_dynamic
from isobit.graph.from_onnx.types import dtype_of_onnx
from isobit.graph.from_onnx.values import Size, Value, integers, numbers


def reshape(b: Builder, op: Op) -> Value:
    """Reshape; the free length becomes -1 where it is the only one."""
    x, wanted = op.needed(0), numbers(op.needed(1))
    if not op.flag("allowzero"):
        wanted = [b.size(x, i) if isinstance(n, int) and n == 0 else n for i, n in enumerate(wanted)]
    if b.has_free_batch(x) and all(isinstance(n, int) for n in wanted):
        assert isinstance(x, fx.Node)
        wanted = fixed_to_free(b, op, x, wanted)
    return _reshaped(b, x, wanted)


def _reshaped(b: Builder, x: Value, wanted: list[Any]) -> Value:
    free = [i for i, n in enumerate(wanted) if isinstance(n, Size)]
    if len(free) == 1 and -1 not in [n for n in wanted if isinstance(n, int)]:
        wanted = [-1 if i == free[0] else n for i, n in enumerate(wanted)]
    if isinstance(x, fx.Node) and rank(x) > 2 and len(wanted) == 2 and is_free(x, 0):
        rest = x.meta[EXAMPLES][0][0].numel()
        keeps = wanted[0] == -1 or (isinstance(wanted[0], Size) and wanted[0].examples == b.size(x, 0).examples)
        if keeps and wanted[1] in (rest, -1) and wanted != [-1, -1] and (wanted[0] != -1 or wanted[1] == rest):
            return b.call(torch.flatten, x, 1)
    return b.method("reshape", x, tuple(wanted))


def flatten(b: Builder, op: Op) -> Value:
    """Two dimensions, cut at an axis."""
    x, axis = op.needed(0), int(op.number("axis", 1))
    axis = axis + rank(x) if axis < 0 else axis
    if axis == 1:
        return b.call(torch.flatten, x, 1) if rank(x) > 1 else b.call(torch.unsqueeze, x, 1)
    if axis == 0:
        return b.method("reshape", x, (1, -1))
    return b.method("reshape", x, (reduce(operator.mul, b.shape(x)[:axis]), -1))


def transpose(b: Builder, op: Op) -> Value:
    """The axes in another order."""
    x = op.needed(0)
    order = op.ints("perm", range(rank(x))[::-1])
    return x if order == list(range(rank(x))) else b.method("permute", x, tuple(order))


def _axes(op: Op) -> list[int] | None:
    return None if op.input(1) is None else integers(op.input(1), "axes")


def squeeze(b: Builder, op: Op) -> Value:
    """Take axes of length 1 away."""
    x, axes = op.needed(0), _axes(op)
    if axes is None:
        axes = [i for i in range(rank(x)) if b.size(x, i) == 1]
    axes = sorted((a % rank(x) for a in axes), reverse=True)
    if any(isinstance(b.size(x, a), Size) for a in axes):
        raise UnsupportedError("it takes the batch dimension away: export the network with a dynamic batch size")
    for axis in axes:
        x = b.call(torch.squeeze, x, axis)
    return x


def unsqueeze(b: Builder, op: Op) -> Value:
    """New axes of length 1."""
    x, axes = op.needed(0), _axes(op) or []
    for axis in sorted(a % (rank(x) + len(axes)) for a in axes):
        x = b.call(torch.unsqueeze, x, axis)
    return x


def concat(b: Builder, op: Op) -> Value:
    """Several tensors along one axis; a constant that was made for the file's batch is repeated for each sample."""
    given = op.given()
    axis = int(op.number("axis")) % rank(given[0])
    leading = next((v for v in given if isinstance(v, fx.Node) and rank(v) and is_free(v, 0)), None)
    if leading is not None and axis != 0 and b.batch is not None:
        given = [_for_each_sample(b, op, v, leading) for v in given]
    return b.call(torch.cat, given, axis) if len(given) > 1 else given[0]


def _for_each_sample(b: Builder, op: Op, value: Value, leading: Value) -> Value:
    """A value whose dimension 0 is the fixed batch, with one entry for each sample."""
    if isinstance(value, fx.Node) and is_free(value, 0):
        return value
    if b.batch != 1 or b.size(value, 0) != 1:
        raise UnsupportedError("it joins values for a fixed batch: export the network with a dynamic batch size")
    b.freed.append(op.name)
    return b.method("expand", value, (b.size(leading, 0), *[-1] * (rank(value) - 1)))


def split(b: Builder, op: Op) -> list[Value]:
    """Parts along one axis."""
    x = op.needed(0)
    axis, count = int(op.number("axis", 0)) % rank(x), len(op.outputs)
    if op.input(1) is not None:
        return b.calls(torch.split, x, integers(op.input(1), "lengths"), axis)
    length = b.size(x, axis)
    if not isinstance(length, int):
        raise UnsupportedError("it splits an axis that the file leaves free")
    return b.calls(torch.split, x, -(-length // count), axis)


def slices(b: Builder, op: Op) -> Value:
    """Parts of axes, with steps."""
    x = op.needed(0)
    starts, ends = numbers(op.needed(1)), numbers(op.needed(2))
    axes = list(range(len(starts))) if op.input(3) is None else integers(op.input(3), "axes")
    steps = [1] * len(starts) if op.input(4) is None else integers(op.input(4), "steps")
    parts: list[Any] = [slice(None)] * rank(x)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        length = b.size(x, axis)
        if step < 0:
            x, start, end, step = _turned(b, x, axis, length, start, end, step)  # noqa: PLW2901
        start, end = _bound(start, length, 0), _bound(end, length, None)  # noqa: PLW2901
        if (start, end, step) != (0, None, 1):
            parts[axis % rank(x)] = slice(start or None, end, step if step != 1 else None)
    while parts and parts[-1] == slice(None):
        parts.pop()
    return b.call(operator.getitem, x, tuple(parts)) if parts else x


def _bound(value: Any, length: Any, whole: int | None) -> Any:
    """A start or an end; `whole` where it lies at the border of the axis or beyond."""
    if isinstance(value, Size):
        return whole if whole is None and isinstance(length, Size) and value.examples == length.examples else value
    if whole is None:
        beyond = value >= 2**31 or (isinstance(length, int) and value >= length)
        return None if beyond else value
    return 0 if value <= -(2**31) or (isinstance(length, int) and value <= -length) else value


def _turned(
    b: Builder, x: Value, axis: int, length: Any, start: Any, end: Any, step: int
) -> tuple[Value, Any, Any, int]:
    """A slice with a negative step is one with a positive step of the axis turned round."""
    if not all(isinstance(v, int) for v in (length, start, end)):
        raise UnsupportedError("it goes backwards along an axis that the file leaves free")
    first, last, _ = slice(start, None if end < -length else end, step).indices(length)
    return b.call(torch.flip, x, [axis]), length - 1 - first, length - 1 - last, -step


def expand(b: Builder, op: Op) -> Value:
    """Repeat axes of length 1; both sides broadcast."""
    x, wanted = op.needed(0), numbers(op.needed(1))
    wanted = [1] * (rank(x) - len(wanted)) + wanted
    own = [1] * (len(wanted) - rank(x)) + b.shape(x)
    out: list[Any] = []
    for i, (have, want) in enumerate(zip(own, wanted, strict=True)):
        kept = (isinstance(want, int) and want == 1) or _same(have, want)
        if isinstance(have, Size) and isinstance(want, int) and want == b.batch:
            kept = True
            b.freed.append(op.name)
        out.append((-1 if i >= len(wanted) - rank(x) else 1) if kept else want)
    return b.method("expand", x, tuple(out)) if any(n != -1 for n in out) else x


def _same(a: Any, c: Any) -> bool:
    if isinstance(a, Size) and isinstance(c, Size):
        return a.examples == c.examples
    return isinstance(a, int) and isinstance(c, int) and a == c


def tile(b: Builder, op: Op) -> Value:
    """Repeat along axes."""
    repeats = numbers(op.needed(1))
    return b.method("repeat", op.needed(0), tuple(repeats)) if any(r != 1 for r in repeats) else op.needed(0)


def cast(b: Builder, op: Op) -> Value:
    """Another type of numbers."""
    x, wanted = op.needed(0), dtype_of_onnx(int(op.number("to")))
    return x if dtype_of(x) == wanted else b.method("to", x, wanted)


def cast_like(b: Builder, op: Op) -> Value:
    """The type of another tensor."""
    x, wanted = op.needed(0), dtype_of(op.needed(1))
    return x if dtype_of(x) == wanted else b.method("to", x, wanted)


def constant_of_shape(b: Builder, op: Op) -> Value:
    """One value in a shape."""
    value = op.attributes.get("value")
    filled = torch.zeros(1) if value is None else value
    return b.call(torch.full, tuple(numbers(op.needed(0))), filled.item(), dtype=filled.dtype)


def range_of(b: Builder, op: Op) -> Value:
    """start, start + step, … below the limit."""
    limits = [numbers(op.needed(i))[0] for i in range(3)]
    dtype = next((dtype_of(v) for v in op.given() if isinstance(v, Tensor)), torch.int64)
    return b.call(torch.arange, *limits, dtype=dtype)


def gather_elements(b: Builder, op: Op) -> Value:
    """One entry for each index along an axis."""
    x, index = op.needed(0), op.needed(1)
    axis = int(op.number("axis", 0)) % rank(x)
    if isinstance(index, Tensor):
        length = b.size(x, axis)
        if not isinstance(length, int):
            raise UnsupportedError("it picks along an axis that the file leaves free")
        index = torch.where(index < 0, index + length, index)
    return b.call(torch.gather, x, axis, index)


def _picks(b: Builder, index: Value) -> list[Value]:
    """One array of positions for each axis, where the last dimension of `index` holds a position on each."""
    count = b.size(index, -1)
    if not isinstance(count, int):
        raise UnsupportedError("how many axes it indexes is left free in the file")
    if isinstance(index, Tensor):
        index = index.long()
    return [b.method("select", index, rank(index) - 1, i) for i in range(count)]


def gather_nd(b: Builder, op: Op) -> Value:
    """Entries, or parts, at positions over several axes."""
    if op.number("batch_dims", 0):
        raise UnsupportedError("batch_dims is not supported")
    return b.call(torch.ops.aten.index.Tensor, op.needed(0), _picks(b, op.needed(1)))


def scatter_nd(b: Builder, op: Op) -> Value:
    """A copy with other entries, or parts, at positions over several axes."""
    reduction = op.text("reduction", "none")
    if reduction not in ("none", "add"):
        raise UnsupportedError(f"the reduction {reduction} is not supported")
    return b.call(torch.index_put, op.needed(0), _picks(b, op.needed(1)), op.needed(2), reduction == "add")


def dropout(_b: Builder, op: Op) -> list[Value]:
    """Nothing, as at inference."""
    if any(op.outputs[1:]):
        raise UnsupportedError("its mask is read. Export the network in eval mode")
    training = op.constant(2)
    if is_dynamic(op.input(2)) or (training is not None and bool(training)):
        raise UnsupportedError("it is in training mode. Export the network in eval mode")
    return [op.needed(0)]


OPS: Mapping[str, Callable[[Builder, Op], Value | list[Value]]] = {
    "Reshape": reshape,
    "Flatten": flatten,
    "Transpose": transpose,
    "Squeeze": squeeze,
    "Unsqueeze": unsqueeze,
    "Concat": concat,
    "Split": split,
    "Slice": slices,
    "Expand": expand,
    "Tile": tile,
    "Cast": cast,
    "CastLike": cast_like,
    "ConstantOfShape": constant_of_shape,
    "Range": range_of,
    "GatherElements": gather_elements,
    "GatherND": gather_nd,
    "ScatterND": scatter_nd,
    "Identity": lambda _b, op: op.needed(0),
    "Dropout": dropout,
    "Shape": sizes.shape,
    "Size": sizes.size,
}
"""Ops that move values or make them from shapes."""
