"""Engines: they run an exported file and say which kernels ran."""

from isobit.engines.base import Engine, Session
from isobit.engines.fake import Fake
from isobit.engines.onnxruntime import OnnxRuntime
from isobit.engines.openvino import OpenVino

ENGINES: dict[str, type[Engine]] = {
    "onnxruntime": OnnxRuntime,
    "openvino": OpenVino,
    "fake": Fake,
}

__all__ = ["ENGINES", "Engine", "Fake", "OnnxRuntime", "OpenVino", "Session"]
