"""Quantized files of any format as QDQ graphs."""

from pathlib import Path

import onnx

from isobit.core.litert_file import is_litert
from isobit.core.onnx_file import read_onnx
from isobit.integer.litert import qdq_of_litert

QUANTIZERS = "isobit.quantizers"
"""The key under which a file that is no ONNX says where it holds the integers of each quantizer, in JSON."""


def format_of(path: Path | str) -> str:
    """The format of a file, by its suffix: what an engine has to take."""
    return "litert" if is_litert(path) else "onnx"


def load_qdq(path: Path | str) -> onnx.ModelProto:
    """The graph of an ONNX file as it is, of a LiteRT file with QuantizeLinear and DequantizeLinear.

    Raises ArtifactError for a file that is damaged or foreign, UnsupportedError for ops that have no rule.
    """
    return qdq_of_litert(path) if is_litert(path) else read_onnx(path)
