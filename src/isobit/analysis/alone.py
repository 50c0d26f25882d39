"""What it takes to run a part of a network alone: the forms that its tensors may have, and values for its inputs."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper

from isobit.core.litert_file import dtypes, is_litert, read_litert
from isobit.integer.files import load_qdq

OPSET = 21

Taken = list[tuple[tuple[int, ...], np.dtype[Any]]]
"""The shape and the type of each input."""

_TO_FIRST, _TO_LAST = (0, 3, 1, 2), (0, 2, 3, 1)


def forms(model: onnx.ModelProto) -> Iterator[onnx.ModelProto]:
    """The part as it is, and with the channels of its images last: engines differ in what they hand on inside."""
    yield model
    images = [v for v in (*model.graph.input, *model.graph.output) if len(v.type.tensor_type.shape.dim) == 4]
    if images:
        yield _channels_last(model)


def taken_by(model: onnx.ModelProto) -> Taken:
    """What a part takes."""
    found = []
    constants = {tensor.name for tensor in model.graph.initializer}
    for value in [v for v in model.graph.input if v.name not in constants]:
        kind = value.type.tensor_type
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(kind.elem_type))
        found.append((tuple(d.dim_value for d in kind.shape.dim), dtype))
    return found


def taken_by_file(path: Path) -> Taken:
    """What a file takes; a size that is open is 1. Raises ArtifactError."""
    if not is_litert(path):
        return [(tuple(max(n, 1) for n in shape), dtype) for shape, dtype in taken_by(load_qdq(path))]
    graph, kinds = read_litert(path).subgraphs[0], dtypes()
    tensors = [graph.tensors[int(i)] for i in graph.inputs]
    return [(tuple(max(int(n), 1) for n in t.shape), kinds[t.type]) for t in tensors]


def drawn(taken: Taken) -> list[np.ndarray]:
    """Values for inputs, on which times do not depend: bytes over their range, normal floats, zeros for indices."""
    random = np.random.default_rng(0)
    found = []
    for shape, dtype in taken:
        if dtype.kind == "f":
            found.append(random.standard_normal(shape).astype(dtype))
        elif dtype.itemsize <= 2 and dtype.kind in "iu":
            limits = np.iinfo(dtype)
            found.append(random.integers(limits.min, limits.max, shape, dtype, endpoint=True))
        else:
            found.append(np.zeros(shape, dtype))
    return found


def no_work() -> onnx.ModelProto:
    """A file with one op on one number: what it takes is the price of a call."""
    x, y = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 1]) for name in ("x", "y"))
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"], "relu")], "call", [x], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)


def _channels_last(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same part between transpositions, which an engine that keeps channels last has nothing to do for."""
    turned = onnx.ModelProto()
    turned.CopyFrom(model)
    before: list[onnx.NodeProto] = []
    behind: list[onnx.NodeProto] = []
    for values, order, nodes in ((turned.graph.input, _TO_FIRST, before), (turned.graph.output, _TO_LAST, behind)):
        for value in values:
            dims = value.type.tensor_type.shape.dim
            if len(dims) != 4:
                continue
            inside, outside = value.name, f"{value.name}/channels_last"
            ends = (outside, inside) if nodes is before else (inside, outside)
            nodes.append(helper.make_node("Transpose", [ends[0]], [ends[1]], outside, perm=order))
            sizes = [dims[i].dim_value for i in _TO_LAST]
            value.name = outside
            for dim, size in zip(dims, sizes, strict=True):
                dim.dim_value = size
    nodes = [*before, *turned.graph.node, *behind]
    del turned.graph.node[:]
    turned.graph.node.extend(nodes)
    return turned
