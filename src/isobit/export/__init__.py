"""Exporters: deployed networks as files. A new one costs a file and a line in this table."""

from isobit.export.litert import LiteRtFile
from isobit.export.onnx_qdq import OnnxQdq, export_float
from isobit.export.protocol import Exporter

EXPORTERS: dict[str, type[Exporter]] = {"onnx": OnnxQdq, "litert": LiteRtFile}

__all__ = ["EXPORTERS", "Exporter", "LiteRtFile", "OnnxQdq", "export_float"]
