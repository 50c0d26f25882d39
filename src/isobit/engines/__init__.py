"""Engines: they run an exported file and say which kernels ran."""

from collections.abc import Callable

from isobit.engines.apart import Apart
from isobit.engines.base import Engine, Session
from isobit.engines.executorch import executorch
from isobit.engines.fake import Fake
from isobit.engines.inductor import Inductor
from isobit.engines.litert import LiteRt, reference_kernels
from isobit.engines.ncnn import ncnn
from isobit.engines.onnxruntime import OnnxRuntime
from isobit.engines.openvino import OpenVino
from isobit.engines.qnn import qnn_htp
from isobit.engines.tvm import tvm

ENGINES: dict[str, Callable[[], Engine]] = {
    "onnxruntime": OnnxRuntime,
    "openvino": OpenVino,
    "litert": LiteRt,
    "litert-reference": reference_kernels,
    "inductor": Inductor,
    "executorch": executorch,
    "qnn-htp": qnn_htp,
    "tvm": tvm,
    "ncnn": ncnn,
    "fake": Fake,
}

__all__ = ["ENGINES", "Apart", "Engine", "Fake", "Inductor", "LiteRt", "OnnxRuntime", "OpenVino", "Session"]
