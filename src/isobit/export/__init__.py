"""Exporters: deployed networks as files. A new one costs a file and a line in this table."""

from isobit.export.aimet import Aimet, AimetLists
from isobit.export.ascend_record import AscendRecord
from isobit.export.encodings import Encoding, ReadBack
from isobit.export.litert import LiteRtFile
from isobit.export.mnn_parameters import MnnParameters
from isobit.export.ncnn_int8 import NcnnInt8
from isobit.export.ncnn_table import NcnnTable
from isobit.export.onnx_qdq import OnnxQdq, export_float
from isobit.export.openvino_ir import OpenVinoIr
from isobit.export.protocol import Exporter, Reader
from isobit.export.pt2e import Pt2e
from isobit.export.qoperator import OnnxQOperator
from isobit.export.signed_qdq import TensorRtQdq, VitisQdq
from isobit.export.tengine_scales import TengineScales
from isobit.export.tensorrt_text import TensorRtCache, TensorRtRanges

EXPORTERS: dict[str, type[Exporter]] = {
    "onnx": OnnxQdq,
    "litert": LiteRtFile,
    "pt2e": Pt2e,
    "onnx-qoperator": OnnxQOperator,
    "openvino": OpenVinoIr,
    "tensorrt": TensorRtQdq,
    "tensorrt-cache": TensorRtCache,
    "tensorrt-ranges": TensorRtRanges,
    "aimet": Aimet,
    "aimet-1.0": AimetLists,
    "ascend": AscendRecord,
    "ncnn": NcnnTable,
    "ncnn-int8": NcnnInt8,
    "mnn": MnnParameters,
    "tengine": TengineScales,
    "vitis-ai": VitisQdq,
}

READERS: dict[str, type[Reader]] = {
    "pt2e": Pt2e,
    "openvino": OpenVinoIr,
    "tensorrt": TensorRtQdq,
    "tensorrt-cache": TensorRtCache,
    "tensorrt-ranges": TensorRtRanges,
    "aimet": Aimet,
    "aimet-1.0": AimetLists,
    "ascend": AscendRecord,
    "ncnn": NcnnTable,
    "mnn": MnnParameters,
    "tengine": TengineScales,
    "vitis-ai": VitisQdq,
}

__all__ = [
    "EXPORTERS",
    "READERS",
    "Encoding",
    "Exporter",
    "LiteRtFile",
    "OnnxQdq",
    "ReadBack",
    "Reader",
    "export_float",
]
