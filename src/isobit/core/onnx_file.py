"""The one reader of ONNX files: what it gives has been checked, and nothing outside the file's folder was opened."""

import os
import stat
from collections.abc import Iterator
from heapq import heappop, heappush
from pathlib import Path, PurePosixPath, PureWindowsPath

import onnx
import onnx.inliner
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from isobit.core.errors import ArtifactError, IsobitError, UnsupportedError
from isobit.core.onnx_checks import BITS, check_attributes, check_functions, check_quantizers, check_tensor
from isobit.core.onnx_sizes import check_sizes
from isobit.core.protobuf_wire import check_wire

LARGEST = (1 << 31) - 1
"""Bytes of a file with its external data: a message of protobuf, as which engines take it, holds no more."""

LISTED = 200_000
"""Ops, constants, inputs or inner tensors of a graph at most."""

NEWEST = 1000
"""Version of a domain of ops at most; an engine may look through all that lie below."""


def read_onnx(path: Path | str) -> onnx.ModelProto:
    """Read an ONNX file and all data that it refers to; local functions are inlined.

    Raises ArtifactError for what is missing, truncated, contradicts itself, refers to files outside its folder, or
    needs tensors that no machine has room for; UnsupportedError for graphs in graphs and sparse tensors. The texts
    name the op or tensor. No engine has to see a file that did not pass.
    """
    path = Path(path)
    data = _read_bytes(path)
    try:
        check_wire(data, onnx.ModelProto.DESCRIPTOR)
        model = onnx.ModelProto()
        model.ParseFromString(data)
    except (DecodeError, ArtifactError) as error:
        raise ArtifactError(
            f"{path} is truncated, or not an ONNX file: {first_line(error)}. Export it again"
        ) from error
    room = LARGEST - len(data)
    del data  # as large as the model, which the checks copy again
    if not model.graph.node or not model.graph.output:
        raise ArtifactError(f"{path} holds no graph: it is truncated, or not an ONNX file. Export it again")
    try:
        return _checked(model, path.parent, room)
    except UnsupportedError as error:
        raise UnsupportedError(f"{path} cannot be read: {first_line(error)}") from error
    except (IsobitError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ArtifactError(f"{path} is not a valid ONNX file: {first_line(error)}") from error
    except Exception as error:  # onnx's own, of any kind, for what it did not foresee
        raise ArtifactError(f"{path} is not a valid ONNX file, onnx says: {first_line(error)}") from error


def graph_inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """The inputs that a caller gives, without initializers that old files list among them."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in constants]


def first_line(error: BaseException) -> str:
    """The first line of an error's text without control characters, short enough to be read.

    Lines that only say where in an engine's source it was raised are passed over.
    """
    lines = ("".join(c if c.isprintable() else " " for c in line).strip() for line in str(error).splitlines())
    said = [line for line in lines if line]
    telling = (line for line in said if not line.startswith("Exception from "))
    text = next(telling, said[0] if said else type(error).__name__).rstrip(".")
    return text if len(text) <= 300 else f"{text[:300]}…"


def _checked(model: onnx.ModelProto, folder: Path, room: int) -> onnx.ModelProto:
    _check_lists(model)
    for tensor in _tensors(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            room -= _load_external(tensor, folder, room)
        check_tensor(tensor)
    if model.functions:
        check_functions(model)
        model = onnx.inliner.inline_local_functions(model)
    _sort(model.graph)
    onnx.checker.check_model(model)
    for i, node in enumerate(model.graph.node):  # reports refer to ops by name
        node.name = node.name or next(filter(None, node.output), f"{node.op_type}_{i}")
    for node in model.graph.node:
        check_attributes(node)
    check_quantizers(model.graph)
    check_sizes(model)
    return model


def _sort(graph: onnx.GraphProto) -> None:
    """Put each node behind those whose results it reads, as engines do that take files in any order (AMD Quark's)."""
    writer = {name: i for i, node in enumerate(graph.node) for name in node.output if name}
    needs = [{writer[name] for name in node.input if name in writer} for node in graph.node]
    if all(place > max(before, default=-1) for place, before in enumerate(needs)):
        return
    readers: dict[int, list[int]] = {}
    for place, before in enumerate(needs):
        for other in before:
            readers.setdefault(other, []).append(place)
    missing = [len(before) for before in needs]
    ready = [place for place, count in enumerate(missing) if not count]
    order: list[int] = []
    while ready:
        order.append(heappop(ready))
        for place in readers.get(order[-1], []):
            missing[place] -= 1
            if not missing[place]:
                heappush(ready, place)
    if len(order) == len(graph.node):  # else there is a circle, which the checker names
        nodes = [graph.node[place] for place in order]
        del graph.node[:]
        graph.node.extend(nodes)


def _check_lists(model: onnx.ModelProto) -> None:
    """Refuse what no engine runs, and lists so long that looking through them takes minutes."""
    if model.training_info:
        raise UnsupportedError("it holds graphs for training. Export it for inference")
    for opset in model.opset_import:
        newest = onnx.defs.onnx_opset_version() if opset.domain in ("", "ai.onnx") else NEWEST
        if not 0 < opset.version <= newest:
            raise ArtifactError(
                f"it asks for version {opset.version} of the ops of {opset.domain or 'ONNX'}, the newest known is "
                f"{newest}"
            )
    for field in ("node", "initializer", "value_info", "input", "output"):
        if len(getattr(model.graph, field)) > LISTED:
            raise ArtifactError(f"its graph lists more than {LISTED:,} of the kind {field}")
    for owner in (model.graph, *model.functions):
        for node in owner.node:
            _check_node(node)
    if model.graph.sparse_initializer:
        raise UnsupportedError("it holds sparse initializers. Store them as ordinary tensors")


def _check_node(node: onnx.NodeProto) -> None:
    """Refuse graphs inside nodes: no engine's integer kernels hold them, and they may run for ever."""
    name = f"{node.name or ', '.join(node.output)} ({node.op_type})"
    kinds = onnx.AttributeProto
    for attribute in node.attribute:
        if attribute.type in (kinds.GRAPH, kinds.GRAPHS) or attribute.HasField("g") or attribute.graphs:
            raise UnsupportedError(f"{name} holds a graph of its own (If, Loop, Scan). Export without control flow")
        if attribute.type in (kinds.SPARSE_TENSOR, kinds.SPARSE_TENSORS) or attribute.HasField("sparse_tensor"):
            raise UnsupportedError(f"{name} holds a sparse tensor. Store it as an ordinary one")


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """All tensors of a file: initializers, and those in attributes."""
    yield from model.graph.initializer
    nodes = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
    for function in model.functions:
        for attribute in function.attribute_proto:
            if attribute.HasField("t"):
                yield attribute.t


def _read_bytes(path: Path) -> bytes:
    if not path.exists():
        raise ArtifactError(f"there is no file {path}")
    if not path.is_file():
        raise ArtifactError(f"{path} is no file that holds a network. Name the .onnx file")
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > LARGEST:
                raise ArtifactError(f"{path} has {size:,} bytes, more than the 2 GiB that an ONNX file can have")
            data = file.read(size + 1)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror or error}") from error
    if not data:
        raise ArtifactError(f"{path} is empty: truncated, or not an ONNX file. Export it again")
    return data


def _load_external(tensor: onnx.TensorProto, folder: Path, room: int) -> int:
    """Put the data of a tensor that lies in another file into `tensor`; returns how many bytes."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    name = repr(tensor.name)
    if tensor.data_type not in BITS:
        raise ArtifactError(f"the tensor {name} of external data has a type that has no bytes")
    expected = _bytes_of(tensor)
    offset, length = (
        _whole(entries.get(key, default), key, name) for key, default in (("offset", "0"), ("length", ""))
    )
    if length is not None and length != expected:
        raise ArtifactError(f"the tensor {name} needs {expected:,} bytes, its external data has {length:,}")
    if expected > room:
        raise ArtifactError(f"with the external data of {name} it needs more than the 2 GiB that an engine can take")
    content = _read_part(_inside(folder, entries.get("location", ""), name), offset or 0, expected, name)
    tensor.ClearField("external_data")
    tensor.data_location = onnx.TensorProto.DEFAULT
    tensor.raw_data = content
    return expected


def _bytes_of(tensor: onnx.TensorProto) -> int:
    count = 1
    for size in tensor.dims:
        if size < 0:
            raise ArtifactError(f"the tensor {tensor.name!r} has the size {size}")
        count *= size
    return (count * BITS[tensor.data_type] + 7) // 8


def _whole(text: str, key: str, name: str) -> int | None:
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise ArtifactError(f"the {key} of the external data of {name} is {text[:40]!r}, not a number of bytes")
    return int(text)


def _inside(folder: Path, location: str, name: str) -> Path:
    """The file of a location, resolved; it has to lie in `folder`, over symbolic links too."""
    posix, windows = PurePosixPath(location), PureWindowsPath(location)
    parts = (*posix.parts, *windows.parts)
    if not location or "\0" in location or posix.is_absolute() or windows.drive or windows.root or ".." in parts:
        raise ArtifactError(
            f"the external data of {name} lies at {location[:200]!r}. Only files in the model's own folder are read"
        )
    try:
        home = folder.resolve(strict=True)
        found = (home / location).resolve(strict=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise ArtifactError(f"the file {location[:200]!r} with the data of {name} is missing") from error
    if not found.is_relative_to(home):
        raise ArtifactError(
            f"the external data of {name}, {location[:200]!r}, is a link that leads out of the model's folder. Only "
            "files in it are read"
        )
    return found


def _read_part(path: Path, offset: int, length: int, name: str) -> bytes:
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        handle = os.open(path, flags)
    except OSError as error:
        raise ArtifactError(
            f"the file {path.name!r} with the data of {name} cannot be read: {error.strerror}"
        ) from error
    found = os.fstat(handle)
    if not stat.S_ISREG(found.st_mode):
        os.close(handle)
        raise ArtifactError(f"the external data of {name}, {path.name!r}, is no ordinary file")
    with os.fdopen(handle, "rb") as file:
        if offset + length > found.st_size:
            raise ArtifactError(
                f"the tensor {name} needs the bytes {offset:,} to {offset + length:,} of {path.name!r}, which has "
                f"{found.st_size:,}: it is truncated"
            )
        file.seek(offset)
        content = file.read(length)
    if len(content) != length:
        raise ArtifactError(f"{path.name!r} ends before the data of {name} does: it is truncated")
    return content
