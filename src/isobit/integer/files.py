"""Quantized files of any format as QDQ graphs."""

from pathlib import Path

import onnx

from isobit.core.litert_file import is_litert
from isobit.integer.litert import qdq_of_litert


def load_qdq(path: Path | str) -> onnx.ModelProto:
    """The graph of an ONNX file as it is, of a LiteRT file with QuantizeLinear and DequantizeLinear.

    Raises ArtifactError for a file that is damaged or foreign.
    """
    return qdq_of_litert(path) if is_litert(path) else onnx.load(path)
