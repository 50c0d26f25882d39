"""How the ops of a PT2E program that move values, or give shapes, read in a QDQ graph."""

from typing import TYPE_CHECKING

import numpy as np

from isobit.core.errors import UnsupportedError
from isobit.core.pt2_file import Call, Ref

if TYPE_CHECKING:
    from isobit.integer.pt2e import Reading


def reshape(r: "Reading", call: Call) -> None:
    """Reshape to the sizes that the file says the result has."""
    (result,) = call.results
    sizes = [-1 if size is None else size for size in r.shape(result)]
    if sizes.count(-1) > 1:
        raise UnsupportedError(f"{result} ({call.target}) gives more than one size that may change")
    shape = r.initializer(f"{result}/shape", np.array(sizes, np.int64))
    r.add("Reshape", [r.operand(call.arguments["self"]), shape], result, allowzero=1)


def size(r: "Reading", call: Call) -> None:
    """Shape, one size of it."""
    axis = int(call.arguments["dim"])
    r.add("Shape", [r.operand(call.arguments["self"])], call.results[0], start=axis, end=axis + 1 or None)


def expand(r: "Reading", call: Call) -> None:
    """Expand."""
    (result,) = call.results
    sizes = call.arguments["size"]
    parts = [
        s.name if isinstance(s, Ref) else r.initializer(f"{result}/size_{i}", np.array([1 if s == -1 else s], np.int64))
        for i, s in enumerate(sizes)
    ]
    shape = r.add("Concat", parts, f"{result}/shape", axis=0)
    r.add("Expand", [r.operand(call.arguments["self"]), shape], result)


def permute(r: "Reading", call: Call) -> None:
    """Transpose."""
    a = call.arguments
    rank = len(r.shape(a["self"]))
    order = list(range(rank))
    if "dims" in a:
        order = [int(d) % rank for d in a["dims"]]
    else:
        one, other = int(a["dim0"]) % rank, int(a["dim1"]) % rank
        order[one], order[other] = other, one
    r.add("Transpose", [r.operand(a["self"])], call.results[0], perm=order)


def concat(r: "Reading", call: Call) -> None:
    """Concat."""
    a = call.arguments
    r.add("Concat", [r.operand(x) for x in a["tensors"]], call.results[0], axis=int(a.get("dim", 0)))


def cut(r: "Reading", call: Call) -> None:
    """Slice along one axis."""
    a, (result,) = call.arguments, call.results
    end = a.get("end")
    limits = (
        ("start", int(a.get("start") or 0)), ("end", int((1 << 62) if end is None else end)),
        ("axis", int(a.get("dim", 0))), ("step", int(a.get("step", 1))),
    )  # fmt: skip
    inputs = [r.initializer(f"{result}/{word}", np.array([v], np.int64)) for word, v in limits]
    r.add("Slice", [r.operand(a["self"]), *inputs], result)


def select(r: "Reading", call: Call) -> None:
    """Gather with one index."""
    a, (result,) = call.arguments, call.results
    index = r.initializer(f"{result}/index", np.array(int(a["index"]), np.int64))
    r.add("Gather", [r.operand(a["self"]), index], result, axis=int(a["dim"]))


def embedding(r: "Reading", call: Call) -> None:
    """Gather of rows."""
    a = call.arguments
    r.add("Gather", [r.operand(a["weight"]), r.operand(a["indices"])], call.results[0], axis=0)


def pad(r: "Reading", call: Call) -> None:
    """Pad with a number."""
    a, (result,) = call.arguments, call.results
    if a.get("mode", "constant") != "constant":
        raise UnsupportedError(f"{result} pads in the mode {a['mode']}")
    rank = len(r.shape(a["self"]))
    pads = np.zeros((2, rank), np.int64)
    for i, n in enumerate(a["pad"]):
        pads[i % 2, rank - 1 - i // 2] = n
    constant = r.initializer(f"{result}/pads", pads.reshape(-1))
    value, kind = a.get("value") or 0, r.integer_type(a["self"])
    filled = r.initializer(f"{result}/value", np.asarray(value, kind or np.float32))
    r.add("Pad", [r.operand(a["self"]), constant, filled], result)
    if kind is not None:
        r.integer(result, kind)
