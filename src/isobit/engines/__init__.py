"""Engines: they run an exported file and say which kernels ran."""

from collections.abc import Callable

from isobit.engines.base import Engine, Session
from isobit.engines.fake import Fake
from isobit.engines.litert import LiteRt, reference_kernels
from isobit.engines.onnxruntime import OnnxRuntime
from isobit.engines.openvino import OpenVino, fixed_sizes

ENGINES: dict[str, Callable[[], Engine]] = {
    "onnxruntime": OnnxRuntime,
    "openvino": OpenVino,
    "openvino-fixed": fixed_sizes,
    "litert": LiteRt,
    "litert-reference": reference_kernels,
    "fake": Fake,
}

__all__ = ["ENGINES", "Engine", "Fake", "LiteRt", "OnnxRuntime", "OpenVino", "Session"]
