"""Quantized files of any format as QDQ graphs."""

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor

from isobit.core.errors import ArtifactError
from isobit.core.litert_file import is_litert
from isobit.core.ncnn_file import is_ncnn
from isobit.core.onnx_file import read_onnx
from isobit.core.pt2_file import is_pt2
from isobit.integer.difference import quantized_tensors
from isobit.integer.litert import qdq_of_litert
from isobit.integer.ncnn import qdq_of_ncnn
from isobit.integer.pt2e import qdq_of_pt2

QUANTIZERS = "isobit.quantizers"
"""The key under which a file that is no ONNX says where it holds the integers of each quantizer, in JSON."""


_DRAWN = 64 << 20
"""Numbers of an input that are drawn at random at most."""


@dataclass(frozen=True)
class Place:
    """Where a file holds the integers of a quantizer: the tensor, the order of its dimensions, and how much lower."""

    name: str
    channels_last: bool = False
    lower: int = 0

    def of(self, q: np.ndarray) -> np.ndarray:
        """The integers of the simulation as the file has them."""
        moved = np.moveaxis(q, 1, -1) if self.channels_last else q
        return moved.astype(np.int16) - self.lower if self.lower else moved


def format_of(path: Path | str) -> str:
    """The format of a file, by its suffix: what an engine has to take."""
    if is_ncnn(path):
        return "ncnn-int8"
    return "litert" if is_litert(path) else "pt2e" if is_pt2(path) else "onnx"


def load_qdq(path: Path | str) -> onnx.ModelProto:
    """The graph of an ONNX file as it is, of a LiteRT, ncnn or PT2E file with QuantizeLinear and DequantizeLinear.

    Raises ArtifactError for a file that is damaged or foreign, UnsupportedError for ops that have no rule.
    """
    if is_ncnn(path):
        return qdq_of_ncnn(path)
    if is_pt2(path):
        return qdq_of_pt2(path)
    return qdq_of_litert(path) if is_litert(path) else read_onnx(path)


def places_of(file: onnx.ModelProto) -> list[Place]:
    """One for each quantizer of the simulation, in the order in which they run. Raises ArtifactError."""
    noted = next((entry.value for entry in file.metadata_props if entry.key == QUANTIZERS), None)
    if noted is None:
        return [Place(name) for name in quantized_tensors(file)]
    try:
        return [Place(str(name), bool(last), int(lower)) for name, last, lower in json.loads(noted)]
    except (ValueError, TypeError) as error:
        raise ArtifactError("what the file says of its quantizers is damaged: export it again") from error


def random_inputs(file: onnx.ModelProto, *, samples: int = 32, seed: int = 0) -> list[tuple[tuple[Tensor, ...]]]:
    """Inputs drawn uniformly over the range of the quantizer that reads each input, in batches of 8.

    A file whose batch has a fixed size gets batches of that size; large samples are fewer, 256 MB at most.
    """
    constants = _constants(file)
    wanted = [(value.name, [d.dim_value for d in value.type.tensor_type.shape.dim]) for value in _inputs(file)]
    fixed = next((sizes[0] for _, sizes in wanted if sizes and sizes[0]), 0)
    largest = max((prod(size or 1 for size in sizes[1:]) for _, sizes in wanted), default=1)
    samples = fixed or max(1, min(samples, _DRAWN // largest))
    generator = torch.Generator().manual_seed(seed)
    found: list[Tensor] = []
    for name, sizes in wanted:
        reader = next((n for n in file.graph.node if n.op_type == "QuantizeLinear" and n.input[0] == name), None)
        if reader is None or any(x not in constants for x in reader.input[1:3] if x):
            raise ArtifactError(f"no quantizer reads the input {name!r}, so its range is unknown: give data")
        scale = constants[reader.input[1]]
        zero_point = constants[reader.input[2]] if len(reader.input) > 2 else np.zeros((), np.uint8)
        if scale.size != 1 or zero_point.size != 1 or zero_point.dtype.kind not in "iu":
            raise ArtifactError(f"the quantizer {reader.name} of the input {name!r} has no single range: give data")
        limits = np.iinfo(zero_point.dtype)
        low = int(limits.min) - int(zero_point.reshape(-1)[0])
        drawn = torch.rand([samples, *(size or 1 for size in sizes[1:])], generator=generator)
        found.append((drawn * (int(limits.max) - int(limits.min)) + low) * float(scale.reshape(-1)[0]))
    batch = fixed or 8
    return [(tuple(x[i : i + batch] for x in found),) for i in range(0, samples, batch)]


def _constants(file: onnx.ModelProto) -> dict[str, np.ndarray]:
    """The constants of a file that one number or a few make up."""
    small = [t for t in file.graph.initializer if prod(t.dims) <= 1024]
    found = {t.name: onnx.numpy_helper.to_array(t) for t in small}
    for node in file.graph.node:
        if node.op_type == "Constant" and (value := next((a for a in node.attribute if a.name == "value"), None)):
            found[node.output[0]] = onnx.numpy_helper.to_array(value.t)
    return found


def read_metadata(path: Path) -> dict[str, str]:
    """What isobit stored in a file, nothing for one that others made; raises ArtifactError where it cannot be read."""
    return metadata_of(load_qdq(path))


def metadata_of(file: onnx.ModelProto) -> dict[str, str]:
    """What isobit stored in a file; nothing where others made it."""
    found = {entry.key: entry.value for entry in file.metadata_props}
    return found if "isobit.integers_sha256" in found else {}


def output_step(file: onnx.ModelProto) -> float | None:
    """The scale of the first output where the file ends on a DequantizeLinear, else None."""
    graph = file.graph
    last = next((n for n in graph.node if graph.output[0].name in n.output), None)
    if last is None or last.op_type != "DequantizeLinear":
        return None
    scale = _constants(file).get(last.input[1])
    return float(scale) if scale is not None and not scale.shape else None


def check_runs(path: Path, metadata: dict[str, str]) -> None:
    """Raise ArtifactError for a file in a form for other tools, which the integer reference does not read."""
    found = metadata.get("isobit.format", "onnx")
    if found != "onnx":
        raise ArtifactError(
            f"{path} has the format {found}, and isobit verifies the format onnx: export the model to that one too, "
            "which holds the same integers, and verify it"
        )


def _inputs(file: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """The inputs that a caller gives, without initializers that old files list among them."""
    constants = {tensor.name for tensor in file.graph.initializer}
    return [value for value in file.graph.input if value.name not in constants]
