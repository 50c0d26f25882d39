"""ncnn's files: `net.param` lists layers as text, `net.bin` beside it holds their weights in the order of the layers.

A line of net.param: kind, name, how many blobs go in and come out, their names, and parameters as `id=value`; an array
has the id -23300 - id and begins with its length. The weights of products begin with a flag of 4 bytes (0: float32,
0x000D4B38: int8, padded to 4 bytes); what else there is has none. Source:
https://github.com/Tencent/ncnn/wiki/param-and-model-file-structure.
"""

import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from isobit.core.errors import ArtifactError
from isobit.core.files import atomic_path

SUFFIX = ".param"
MAGIC = "7767517"
INT8 = 0x000D4B38
HASHES = "isobit.beside"
"""The key that holds the SHA-256 of net.param and net.bin."""
_LARGEST = 64 << 20
"""Bytes of a net.param at most."""

Value = int | float | tuple[float, ...]


@dataclass(frozen=True, eq=False, slots=True)
class Layer:
    """One line, and its weights: the first with a flag, the rest without."""

    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    parameters: Mapping[int, Value] = field(default_factory=dict)
    weights: Sequence[np.ndarray] = ()

    def number(self, key: int, default: int = 0) -> int:
        """A parameter that has to be a whole number. Raises ArtifactError."""
        value = self.parameters.get(key, default)
        if not isinstance(value, int):
            raise ArtifactError(f"parameter {key} of {self.name} ({self.kind}) has to be a whole number, got {value}")
        return value

    def decimal(self, key: int, default: float = 0.0) -> np.float32:
        """A parameter that has to be one number. Raises ArtifactError."""
        value = self.parameters.get(key, default)
        if isinstance(value, tuple):
            raise ArtifactError(f"parameter {key} of {self.name} ({self.kind}) has to be one number")
        return np.float32(value)


def is_ncnn(path: Path | str) -> bool:
    """Whether a path names an ncnn network, by its suffix."""
    return Path(path).suffix == SUFFIX


def write_ncnn(path: Path, layers: Sequence[Layer], metadata: Mapping[str, str]) -> None:
    """Write net.param, net.bin and net.json, which holds isobit's own keys and the hashes of the two: all or none."""
    blobs = {name for layer in layers for name in layer.outputs}
    text = "\n".join([MAGIC, f"{len(layers)} {len(blobs)}", *map(_line, layers)]) + "\n"
    contents = {path: text.encode(), path.with_suffix(".bin"): b"".join(_bytes(layer) for layer in layers)}
    hashes = {place.suffix: hashlib.sha256(content).hexdigest() for place, content in contents.items()}
    told = json.dumps({**metadata, HASHES: json.dumps(list(hashes.values()))}, indent=1, sort_keys=True) + "\n"
    contents[path.with_suffix(".json")] = told.encode()
    with ExitStack() as stack:
        for place, content in contents.items():
            stack.enter_context(atomic_path(place)).write_bytes(content)


def read_ncnn(path: Path | str) -> tuple[list[Layer], dict[str, str]]:
    """The layers with their weights, and isobit's own keys, if any. Raises ArtifactError."""
    path = Path(path)
    try:
        if path.stat().st_size > _LARGEST:
            raise ArtifactError(f"{path} is no ncnn file: it is larger than {_LARGEST >> 20} MB")
        text = path.read_bytes()
        lines = text.decode().splitlines()
        content = path.with_suffix(".bin").read_bytes()
    except OSError as error:
        raise ArtifactError(f"there is no file {error.filename}") from error
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{path} is not an ncnn file") from error
    if len(lines) < 2 or lines[0].strip() != MAGIC:
        raise ArtifactError(f"{path} is not an ncnn file, or it is truncated")
    reader = _Weights(content, path.with_suffix(".bin"))
    try:
        wanted = int(lines[1].split()[0])
        layers = [_layer(line, reader) for line in lines[2:] if line.strip()]
    except (ValueError, IndexError) as error:
        raise ArtifactError(f"{path} is not an ncnn file, or it is truncated: {error}") from error
    if len(layers) != wanted or reader.place != len(content):
        raise ArtifactError(f"{path} is truncated, or {path.with_suffix('.bin').name} belongs to another file")
    metadata = _metadata(path.with_suffix(".json"))
    found = [hashlib.sha256(data).hexdigest() for data in (text, content)]
    if metadata and json.loads(metadata.get(HASHES, "[]")) != found:
        raise ArtifactError(f"{path}, or net.bin or net.json beside it, is not the one that was written: export again")
    return layers, metadata


def _metadata(path: Path) -> dict[str, str]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {str(key): str(value) for key, value in found.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError) as error:
        raise ArtifactError(f"{path} is damaged: export the network again") from error


def _line(layer: Layer) -> str:
    parameters = [_parameter(key, value) for key, value in sorted(layer.parameters.items())]
    blobs = [str(len(layer.inputs)), str(len(layer.outputs)), *layer.inputs, *layer.outputs]
    return " ".join([f"{layer.kind:24}", layer.name, *blobs, *parameters])


def _parameter(key: int, value: Value) -> str:
    if isinstance(value, tuple):
        return f"{-23300 - key}={','.join([str(len(value)), *map(_number, value)])}"
    return f"{key}={_number(value)}"


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{np.float32(value):.9e}"


def _bytes(layer: Layer) -> bytes:
    parts = []
    for i, array in enumerate(layer.weights):
        if i == 0:
            parts.append(struct.pack("<I", INT8 if array.dtype == np.int8 else 0))
        data = np.ascontiguousarray(array).tobytes()
        parts.append(data + b"\0" * (-len(data) % 4))
    return b"".join(parts)


def _layer(line: str, weights: "_Weights") -> Layer:
    kind, name, inputs, outputs, *rest = line.split()
    n, m = int(inputs), int(outputs)
    if n < 0 or m < 0 or len(rest) < n + m:
        raise ArtifactError(f"the layer {name} does not name its blobs")
    parameters: dict[int, Value] = {}
    for text in rest[n + m :]:
        key, _, value = text.partition("=")
        if int(key) <= -23300:
            parameters[-23300 - int(key)] = tuple(float(v) for v in value.split(",")[1:])
        else:
            parameters[int(key)] = float(value) if "." in value or "e" in value else int(value)
    layer = Layer(kind, name, tuple(rest[:n]), tuple(rest[n : n + m]), parameters)
    return Layer(kind, name, layer.inputs, layer.outputs, parameters, weights.of(layer))


class _Weights:
    """net.bin, read from its beginning to its end."""

    def __init__(self, content: bytes, path: Path) -> None:
        self.content, self.path, self.place = content, path, 0

    def of(self, layer: Layer) -> tuple[np.ndarray, ...]:
        """The weights of a layer: those, a bias, and for int8 the scales of the weights and of the input."""
        match layer.kind:
            case "Convolution" | "ConvolutionDepthWise":
                bias, size, scales = layer.number(5), layer.number(6), layer.number(8)
            case "InnerProduct":
                bias, size, scales = layer.number(1), layer.number(2), layer.number(8)
            case _:
                return ()
        outputs = layer.number(0)
        groups = layer.number(7, 1) if layer.kind == "ConvolutionDepthWise" else outputs
        found = [self.flagged(size)]
        found += [self.floats(outputs)] if bias else []
        if scales not in (0, 1, 2) or (layer.kind == "ConvolutionDepthWise" and scales == 2):
            raise ArtifactError(f"the layer {layer.name} has scales of the kind {scales}, which isobit does not read")
        found += [self.floats(groups), self.floats(1)] if scales else []
        return tuple(found)

    def flagged(self, size: int) -> np.ndarray:
        (flag,) = struct.unpack("<I", self.take(4))
        if flag == INT8:
            return np.frombuffer(self.take(size + -size % 4), np.int8)[:size]
        if flag != 0:
            raise ArtifactError(f"{self.path} holds weights of the kind {flag:#x}, which isobit does not read")
        return self.floats(size)

    def floats(self, size: int) -> np.ndarray:
        return np.frombuffer(self.take(4 * size), np.float32)

    def take(self, size: int) -> bytes:
        if size < 0 or self.place + size > len(self.content):
            raise ArtifactError(f"{self.path} is truncated, or belongs to another file")
        self.place += size
        return self.content[self.place - size : self.place]
