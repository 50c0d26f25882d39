"""Quantized files of any format as QDQ graphs."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from isobit.core.errors import ArtifactError
from isobit.core.litert_file import is_litert
from isobit.core.onnx_file import read_onnx
from isobit.integer.difference import quantized_tensors
from isobit.integer.litert import qdq_of_litert

QUANTIZERS = "isobit.quantizers"
"""The key under which a file that is no ONNX says where it holds the integers of each quantizer, in JSON."""


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
    return "litert" if is_litert(path) else "onnx"


def load_qdq(path: Path | str) -> onnx.ModelProto:
    """The graph of an ONNX file as it is, of a LiteRT file with QuantizeLinear and DequantizeLinear.

    Raises ArtifactError for a file that is damaged or foreign, UnsupportedError for ops that have no rule.
    """
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
