"""`load_onnx`: a float ONNX file becomes a network."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper, version_converter
from torch import Tensor, fx

from isobit.core.errors import IsobitError, UnsupportedError
from isobit.core.onnx_file import first_line, read_onnx
from isobit.graph.from_onnx import activations, arithmetic, layers, pooling, shapes, sizes
from isobit.graph.from_onnx.batch import check_freed
from isobit.graph.from_onnx.builder import Builder
from isobit.graph.from_onnx.fusions import fuse
from isobit.graph.from_onnx.op import Op
from isobit.graph.from_onnx.types import OTHER_FLOATS, dtype_of_onnx
from isobit.graph.from_onnx.values import Value

OPS = {**layers.OPS, **activations.OPS, **pooling.OPS, **shapes.OPS, **arithmetic.OPS}
"""The ops of ONNX that can be imported."""

OLDEST = 13
"""Version of the ops that the table above is written for; older files are converted."""

QUANTIZED = frozenset({
    "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger", "QLinearConv",
    "QLinearMatMul", "QLinearAdd", "QLinearMul", "QLinearConcat", "QLinearGlobalAveragePool", "QGemm", "MatMulNBits",
})  # fmt: skip
"""Ops that only a quantized file has."""

BATCHES = (13, 17)
"""Two batch sizes of the examples: what differs between them is free."""

FREE_LENGTHS = ((224, 256), (64, 96), (16, 24), (6, 8))
"""What is tried for other dimensions that the file leaves free."""


def load_onnx(path: Path | str) -> fx.GraphModule:
    """The network of a float ONNX file, with its weights, in eval mode.

    Ops with weights and activations are modules of torch.nn, named as in the network that the file was exported from
    where the file still says so. The batch size is free, also where the file has it fixed.

    Raises ArtifactError for a file that is missing or broken, UnsupportedError for a quantized one, for an op that is
    not supported, and where the batch size cannot be freed. The text names the op.
    """
    path = Path(path)
    file = read_onnx(path)
    try:
        with _quiet():
            return _imported(_of_known_version(file))
    except IsobitError as error:
        raise UnsupportedError(f"{path}: {error}") from error
    except Exception as error:  # of any kind, from onnx and torch
        raise UnsupportedError(f"{path} cannot be imported: {first_line(error)}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """An op that does not fit its inputs raises, and torch logs the same with a traceback as well."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


def is_quantized(file: onnx.ModelProto) -> bool:
    """Whether a file has quantizers, or ops on integers that only quantization makes."""
    return any(node.op_type in QUANTIZED for node in file.graph.node)


def _of_known_version(file: onnx.ModelProto) -> onnx.ModelProto:
    """The file with ops of version 13 or newer. Raises UnsupportedError for unknown ops and quantized files."""
    found = next((n for n in file.graph.node if n.op_type in QUANTIZED), None)
    if found is not None:
        raise UnsupportedError(
            f"it is quantized already: {found.name} is a {found.op_type}. Give the float file that it was made from; "
            "`isobit verify` and `isobit analyze` judge a quantized one"
        )
    unknown = {f"{n.domain}.{n.op_type}" if _foreign(n) else n.op_type: n.name for n in reversed(file.graph.node)
               if _foreign(n) or n.op_type not in {*OPS, "Constant", "Upsample"}}  # fmt: skip
    if unknown:
        kinds = ", ".join(f"{kind} (at {name})" for kind, name in sorted(unknown.items()))
        raise UnsupportedError(f"no support for {kinds}. Supported are {', '.join(sorted({*OPS, 'Constant'}))}")
    version = next((o.version for o in file.opset_import if o.domain in ("", "ai.onnx")), OLDEST)
    if version >= OLDEST:
        return file
    try:
        return version_converter.convert_version(file, OLDEST)
    except Exception as error:  # of any kind, from C++
        raise UnsupportedError(
            f"its ops are of version {version}, and onnx cannot convert them to {OLDEST}: {first_line(error)}. Export "
            f"it with opset {OLDEST} or newer"
        ) from error


def _foreign(node: onnx.NodeProto) -> bool:
    return node.domain not in ("", "ai.onnx")


def _imported(file: onnx.ModelProto) -> fx.GraphModule:
    """Import with what fits for the dimensions that are free, beside the batch."""
    constants = {t.name for t in file.graph.initializer}
    inputs = [i for i in file.graph.input if i.name not in constants]
    if not inputs:
        raise UnsupportedError("it has no input")
    free = any(_symbol(d) is not None for i in inputs for d in i.type.tensor_type.shape.dim[1:])
    first: IsobitError | None = None
    for lengths in FREE_LENGTHS if free else FREE_LENGTHS[:1]:
        try:
            return _with_lengths(file, inputs, lengths)
        except IsobitError as error:
            first = first or error
    assert first is not None
    raise first


def _with_lengths(
    file: onnx.ModelProto, inputs: Sequence[onnx.ValueInfoProto], lengths: tuple[int, int]
) -> fx.GraphModule:
    batches = [i.type.tensor_type.shape.dim[0] for i in inputs if i.type.tensor_type.shape.dim]
    if not batches:
        raise UnsupportedError(f"its input {inputs[0].name} has no dimension for the batch, or no shape")
    free = _symbol(batches[0]) is not None
    b = Builder(None if free else int(batches[0].dim_value), BATCHES[0])
    values: dict[str, Value] = {}
    for given in inputs:
        values[given.name] = b.placeholder(given.name, _type(b, given), _examples(given, lengths, b.batch))
    for tensor in file.graph.initializer:
        values[tensor.name] = _constant(b, tensor)
    version = next((o.version for o in file.opset_import if o.domain in ("", "ai.onnx")), OLDEST)
    for node in file.graph.node:
        op = _op(b, node, values, version)
        try:
            found = _built(b, op)
        except IsobitError as error:
            raise UnsupportedError(f"{op.kind} {op.name}: {error}") from error
        except Exception as error:
            raise UnsupportedError(f"{op.kind} {op.name} cannot be imported: {first_line(error)}") from error
        values.update(zip(op.outputs, found, strict=False))
    return _finished(b, file, [values[o.name] for o in file.graph.output])


def _symbol(dimension: Any) -> str | None:
    """The name of a free dimension, None for a fixed one."""
    return None if dimension.HasField("dim_value") and dimension.dim_value > 0 else str(dimension.dim_param)


def _type(b: Builder, given: onnx.ValueInfoProto) -> torch.dtype:
    number = given.type.tensor_type.elem_type
    if number in OTHER_FLOATS:
        b.notes[f"the file is in {OTHER_FLOATS[number]}: it is computed, calibrated and exported in float32"] = None
    return dtype_of_onnx(number)


def _examples(given: onnx.ValueInfoProto, lengths: tuple[int, int], batch: int | None) -> tuple[list[int], list[int]]:
    """Two shapes of an input, another one in each free dimension; the batch is the first dimension."""
    dimensions = given.type.tensor_type.shape.dim
    if not given.type.tensor_type.HasField("shape") or not dimensions:
        raise UnsupportedError(f"its input {given.name} has no shape. Export it with the shapes of its inputs")
    found: tuple[list[int], list[int]] = ([], [])
    for axis, dimension in enumerate(dimensions):
        free = _symbol(dimension) is not None
        of_batch = axis == 0 and (free or dimension.dim_value == batch)
        for side, shape in enumerate(found):
            shape.append(BATCHES[side] if of_batch else lengths[side] if free else int(dimension.dim_value))
    return found


def _constant(b: Builder, tensor: onnx.TensorProto) -> Tensor:
    dtype = dtype_of_onnx(tensor.data_type)
    array = numpy_helper.to_array(tensor)
    if tensor.data_type in OTHER_FLOATS:
        array = array.astype(np.float32)
        if array.ndim > 1:
            b.notes[f"weights are in {OTHER_FLOATS[tensor.data_type]}: computed and exported in float32"] = None
    return torch.from_numpy(np.array(array, order="C")).to(dtype)  # a copy: the array is read-only


def _op(b: Builder, node: onnx.NodeProto, values: Mapping[str, Value], version: int) -> Op:
    attributes: dict[str, Any] = {}
    for attribute in node.attribute:
        value = onnx.helper.get_attribute_value(attribute)
        attributes[attribute.name] = _constant(b, value) if isinstance(value, onnx.TensorProto) else value
    scopes = next((p.value for p in node.metadata_props if p.key == "pkg.torch.onnx.name_scopes"), "")
    return Op(
        kind=node.op_type, name=node.name, names=list(node.input), outputs=list(node.output), attributes=attributes,
        inputs=[values[name] if name else None for name in node.input], scope=_scope(scopes), opset=version,
    )  # fmt: skip


def _scope(scopes: str) -> str:
    """The module in the list of scopes that torch.onnx.export writes: the last but the node itself."""
    names = [name.strip().strip("'\"") for name in scopes.strip("[]").split(",")]
    return names[-2] if len(names) > 1 and not names[-2].startswith("_empty") else ""


def _built(b: Builder, op: Op) -> Sequence[Value]:
    b.op = op
    if op.kind == "Constant":
        return [_value_of_constant(op)]
    if sizes.fits(op):
        return [sizes.computed(op)]
    found = OPS[op.kind](b, op)
    return found if isinstance(found, list) else [found]


def _value_of_constant(op: Op) -> Value:
    (value,) = op.attributes.values()
    if isinstance(value, Tensor):
        return value
    if isinstance(value, (int, float)):
        return torch.tensor(value)
    if isinstance(value, (list, tuple)) and not any(isinstance(v, bytes) for v in value):
        return torch.tensor(list(value))
    raise UnsupportedError("constants of text are not supported")


def _finished(b: Builder, file: onnx.ModelProto, outputs: list[Value]) -> fx.GraphModule:
    nodes = [b.constant(v) if isinstance(v, Tensor) else v for v in outputs]
    tensors = [v for v in nodes if isinstance(v, fx.Node)]
    if len(tensors) < len(nodes) or all(v.op == "get_attr" for v in tensors):
        raise UnsupportedError("an output is a shape, or no output depends on the inputs")
    b.graph.output(tensors[0] if len(tensors) == 1 else tuple(tensors))
    fuse(b)
    for node in reversed(list(b.graph.nodes)):
        if not node.users and node.op not in ("placeholder", "output"):
            b.graph.erase_node(node)
    b.graph.lint()
    name = "".join(c if c.isalnum() else "_" for c in file.graph.name) or "Network"
    network = fx.GraphModule(b.root, b.graph, name if name[0].isalpha() else f"Onnx_{name}")
    check_freed(b, network)
    for node in network.graph.nodes:
        node.meta.clear()
    network.meta["notes"] = tuple(b.notes)
    return network.eval()
