"""Exporters: deployed networks as files. A new one costs a file and a line in this table."""

from collections.abc import Callable

from isobit.export.aimet import aimet_0_6, aimet_1_0
from isobit.export.ascend_record import ascend
from isobit.export.encodings import Encoding, ReadBack
from isobit.export.engine_format import EngineFormat
from isobit.export.litert import litert_file
from isobit.export.mnn_parameters import mnn
from isobit.export.ncnn_int8 import ncnn_files
from isobit.export.ncnn_table import ncnn
from isobit.export.nnie_parameters import nnie
from isobit.export.onnx_qdq import OnnxQdq, export_float
from isobit.export.openvino_ir import OpenVinoIr
from isobit.export.protocol import Exporter, Reader
from isobit.export.pt2e import pt2e_archive
from isobit.export.qoperator import OnnxQOperator
from isobit.export.signed_qdq import tensorrt, vitis_ai
from isobit.export.tengine_scales import tengine
from isobit.export.tensorrt_text import tensorrt_cache, tensorrt_ranges

READERS: dict[str, Callable[[], Reader]] = {
    "pt2e": pt2e_archive,
    "openvino": OpenVinoIr,
    "tensorrt": tensorrt,
    "tensorrt-cache": tensorrt_cache,
    "tensorrt-ranges": tensorrt_ranges,
    "aimet": aimet_0_6,
    "aimet-1.0": aimet_1_0,
    "ascend": ascend,
    "ncnn": ncnn,
    "mnn": mnn,
    "tengine": tengine,
    "nnie": nnie,
    "vitis-ai": vitis_ai,
}
"""Exporters for vendors' tools, which read their own files: what those tools find in them."""

ENGINE_FORMATS: dict[str, Callable[[], EngineFormat]] = {
    "litert": litert_file,
    "pt2e": pt2e_archive,
    "ncnn-int8": ncnn_files,
}
"""Formats that engines run besides ONNX, made of its graph."""

EXPORTERS: dict[str, Callable[[], Exporter]] = {
    "onnx": OnnxQdq,
    "onnx-qoperator": OnnxQOperator,
    **ENGINE_FORMATS,
    **READERS,
}

__all__ = [
    "ENGINE_FORMATS",
    "EXPORTERS",
    "READERS",
    "Encoding",
    "EngineFormat",
    "Exporter",
    "OnnxQdq",
    "ReadBack",
    "Reader",
    "export_float",
]
