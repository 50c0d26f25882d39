"""Quantized files of any format as QDQ graphs."""

import json
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor

from isobit.core.errors import ArtifactError
from isobit.core.litert_file import is_litert
from isobit.core.ncnn_file import is_ncnn
from isobit.core.onnx_file import graph_inputs, read_onnx
from isobit.core.pt2_file import is_pt2
from isobit.integer.difference import quantized_tensors
from isobit.integer.litert import qdq_of_litert
from isobit.integer.ncnn import qdq_of_ncnn
from isobit.integer.pt2e import qdq_of_pt2
from isobit.integer.qoperator import has_quantized_operators, qdq_of_qoperators

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
    """The graph of a file, with QuantizeLinear and DequantizeLinear: those of an ONNX file, or what its quantized
    operators, or the tensors of a LiteRT, PT2E or ncnn file mean.

    Raises ArtifactError for a file that is damaged or foreign, UnsupportedError for ops that have no rule.
    """
    if is_ncnn(path):
        return qdq_of_ncnn(path)
    if is_pt2(path):
        return qdq_of_pt2(path)
    if is_litert(path):
        return qdq_of_litert(path)
    file = read_onnx(path)
    return qdq_of_qoperators(file) if has_quantized_operators(file) else file


def places_of(file: onnx.ModelProto) -> list[Place]:
    """One for each quantizer of the simulation, in the order in which they run. Raises ArtifactError."""
    noted = next((entry.value for entry in file.metadata_props if entry.key == QUANTIZERS), None)
    if noted is None:
        return [Place(name) for name in quantized_tensors(file)]
    try:
        return [Place(str(name), bool(last), int(lower)) for name, last, lower in json.loads(noted)]
    except (ValueError, TypeError) as error:
        raise ArtifactError("what the file says of its quantizers is damaged: export it again") from error


@dataclass(frozen=True)
class Input:
    """What a file takes: the sizes, None where any will do, the type, and the scale and zero point where it has one.

    `rounded` is the type of the integers that the first quantizer makes of it; that of the input where it holds such.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: np.dtype[Any]
    grid: tuple[np.float32, int] | None = None
    rounded: np.dtype[Any] = field(default_factory=lambda: np.dtype(np.uint8))


def inputs_of(file: onnx.ModelProto) -> list[Input]:
    """The inputs of a file, in order, with the grid of the quantizer that reads each, or of its own integers."""
    constants = _constants(file)
    found = []
    for value in graph_inputs(file):
        kind = value.type.tensor_type
        shape = tuple(d.dim_value if d.HasField("dim_value") and d.dim_value else None for d in kind.shape.dim)
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
        op = "QuantizeLinear" if dtype.kind == "f" else "DequantizeLinear"
        reader = next((n for n in file.graph.node if n.op_type == op and n.input[0] == value.name), None)
        grid, rounded = None, dtype
        if reader is not None and all(x in constants for x in reader.input[1:3] if x):
            scale = constants[reader.input[1]]
            unsigned = np.zeros((), np.uint8 if dtype.kind == "f" else dtype)
            zero_point = constants[reader.input[2]] if len(reader.input) > 2 else unsigned
            if scale.size == 1 and zero_point.size == 1 and zero_point.dtype.kind in "iu":
                grid, rounded = (np.float32(scale.reshape(-1)[0]), int(zero_point.reshape(-1)[0])), zero_point.dtype
        found.append(Input(value.name, shape, dtype, grid, rounded))
    return found


def random_inputs(file: onnx.ModelProto, *, samples: int = 32, seed: int = 0) -> list[tuple[tuple[Tensor, ...]]]:
    """Inputs drawn uniformly over the range of the quantizer that reads each input, in batches of 8.

    A file whose batch has a fixed size gets batches of that size; large samples are fewer, 256 MB at most.
    """
    wanted = inputs_of(file)
    fixed = next((x.shape[0] for x in wanted if x.shape and x.shape[0]), 0)
    largest = max((prod(size or 1 for size in x.shape[1:]) for x in wanted), default=1)
    batch = fixed or 8
    samples = max(1, min(samples, _DRAWN // largest))
    samples = -(-samples // fixed) * fixed if fixed else samples
    generator = torch.Generator().manual_seed(seed)
    found: list[Tensor] = []
    for x in wanted:
        if x.grid is None:
            raise ArtifactError(f"no quantizer with one range reads the input {x.name!r}: give data")
        limits, (scale, zero_point) = np.iinfo(x.rounded), x.grid
        shape = [samples, *(size or 1 for size in x.shape[1:])]
        if x.dtype.kind in "iu":
            drawn = torch.randint(int(limits.min), int(limits.max) + 1, shape, generator=generator)
            found.append(drawn.to(torch.from_numpy(np.zeros(0, x.dtype)).dtype))
            continue
        low = int(limits.min) - zero_point
        drawn = torch.rand(shape, generator=generator)
        found.append((drawn * (int(limits.max) - int(limits.min)) + low) * float(scale))
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
    """The scale of the first output where the file ends on a DequantizeLinear, 1 for integers, else None."""
    graph = file.graph
    last = next((n for n in graph.node if graph.output[0].name in n.output), None)
    if last is not None and last.op_type == "QuantizeLinear":
        return 1.0
    if last is None or last.op_type != "DequantizeLinear":
        return None
    scale = _constants(file).get(last.input[1])
    return float(scale) if scale is not None and not scale.shape else None


def check_runs(path: Path, metadata: dict[str, str]) -> None:
    """Raise ArtifactError for a file in a form for other tools, which the integer reference does not read."""
    found = metadata.get("isobit.format", "onnx")
    if found not in ("onnx", "onnx-qoperator"):
        raise ArtifactError(
            f"{path} has the format {found}, and isobit verifies the format onnx: export the model to that one too, "
            "which holds the same integers, and verify it"
            + (", or give the encodings beside it: --encodings FILE" if found.startswith("aimet") else "")
        )
