"""LiteRT files: reading and writing flatbuffers of TensorFlow Lite's schema, version 3, as plain objects."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from isobit.core.errors import ArtifactError, MissingExtraError

SUFFIX = ".tflite"
IDENTIFIER = b"TFL3"
METADATA = "isobit"
"""The name of the metadata entry that holds isobit's own keys, as JSON."""

FUSED_ACTIVATIONS = {"NONE": 0, "RELU": 1, "RELU_N1_TO_1": 2, "RELU6": 3, "RELU_0_TO_1": 6}
"""Activations that an op applies to its own result."""


def is_litert(path: Path | str) -> bool:
    """Whether a path names a LiteRT file, by its suffix."""
    return Path(path).suffix == SUFFIX


def missing() -> str:
    """Empty where the schema is installed; else the command that installs it."""
    return "" if importlib.util.find_spec("ai_edge_litert") else str(MissingExtraError("LiteRT", "litert"))


def schema() -> Any:
    """The module of the schema's classes, which LiteRT's own package holds. Raises MissingExtraError."""
    if missing():
        raise MissingExtraError("LiteRT", "litert")
    from ai_edge_litert import schema_py_generated

    return schema_py_generated


def dtypes() -> dict[int, np.dtype[Any]]:
    """numpy's type of each tensor type that isobit reads and writes."""
    kinds = schema().TensorType
    names = {"FLOAT32": "float32", "FLOAT16": "float16", "INT8": "int8", "UINT8": "uint8", "INT16": "int16",
             "INT32": "int32", "INT64": "int64", "BOOL": "bool"}  # fmt: skip
    return {getattr(kinds, name): np.dtype(kind) for name, kind in names.items()}


def op_names() -> dict[int, str]:
    """The name of each builtin op by its number, `{3: "CONV_2D", …}`."""
    ops = schema().BuiltinOperator
    return {value: name for name, value in vars(ops).items() if isinstance(value, int)}


def read_litert(path: Path | str) -> Any:
    """The file as a `ModelT` of the schema. Raises ArtifactError for one that is truncated or foreign."""
    path = Path(path)
    if not path.is_file():
        raise ArtifactError(f"there is no file {path}")
    data = path.read_bytes()
    if len(data) < 8 or data[4:8] != IDENTIFIER:
        raise ArtifactError(f"{path} is truncated, or not a LiteRT file: it lacks the mark {IDENTIFIER.decode()}")
    classes = schema()
    try:
        model = classes.ModelT.InitFromObj(classes.Model.GetRootAs(data, 0))
    except Exception as error:  # offsets that point anywhere fail in as many ways as there are types
        raise ArtifactError(f"{path} is truncated or damaged: {error or type(error).__name__}") from error
    if not model.subgraphs or not model.operatorCodes or not model.buffers or not model.subgraphs[0].operators:
        raise ArtifactError(f"{path} holds no graph: it is truncated, or not a LiteRT file")
    for buffer in model.buffers:
        _bring_in(buffer, data, path)
    return model


def _bring_in(buffer: Any, data: bytes, path: Path) -> None:
    """Take in data that lie behind the flatbuffer in the same file, as those of large models do."""
    if buffer.offset < 2 and not buffer.size:  # 0 and 1 stand for none
        return
    if not (buffer.size > 0 and buffer.offset + buffer.size <= len(data)) or len(_bytes(buffer)):
        raise ArtifactError(f"{path} refers to data outside the flatbuffer that it does not hold: it is truncated")
    buffer.data = np.frombuffer(data, np.uint8, count=buffer.size, offset=buffer.offset)
    buffer.offset = buffer.size = 0


def _bytes(buffer: Any) -> Any:
    return () if buffer.data is None else buffer.data


def serialized(model: Any) -> bytes:
    """The bytes of a `ModelT`."""
    import flatbuffers

    builder = flatbuffers.Builder(1 << 16)
    builder.Finish(model.Pack(builder), IDENTIFIER)
    return bytes(builder.Output())


def tensor_name(tensor: Any) -> str:
    """A tensor's name as text; the schema's classes give bytes."""
    return tensor.name.decode(errors="replace") if isinstance(tensor.name, bytes) else str(tensor.name or "")


def unique_names(graph: Any) -> list[str]:
    """A name for each tensor of a subgraph, with its index behind those that stand for several."""
    seen: set[str] = set()
    found = []
    for i, tensor in enumerate(graph.tensors or ()):
        name = tensor_name(tensor) or f"tensor_{i}"
        found.append(name if name not in seen else f"{name}#{i}")
        seen.add(found[-1])
    return found


def metadata_of(model: Any) -> bytes | None:
    """isobit's own metadata, where the file holds some."""
    for entry in model.metadata or ():
        name = entry.name.decode(errors="replace") if isinstance(entry.name, bytes) else entry.name
        if name == METADATA and 0 <= entry.buffer < len(model.buffers):
            data = model.buffers[entry.buffer].data
            return None if data is None else np.asarray(data, np.uint8).tobytes()
    return None
