"""Targets: hardware as rows of data. A new one costs a file and a line in this table."""

from isobit.targets import (
    academic,
    ascend,
    fbgemm,
    litert,
    onnxruntime,
    onnxruntime_dynamic,
    onnxruntime_weights,
    openvino,
    openvino_weights,
    snpe,
    tensorrt,
    tvm,
)
from isobit.targets.form import DequantizeLinear, MatMulInteger, MatMulNBits
from isobit.targets.profile import Placement, Profile, Target

TARGETS: dict[str, Profile] = {
    "academic": academic.PROFILE,
    "tensorrt": tensorrt.PROFILE,
    "ascend": ascend.PROFILE,
    "tvm": tvm.PROFILE,
    "snpe": snpe.PROFILE,
    "fbgemm": fbgemm.PROFILE,
    "onnxruntime-x86": onnxruntime.PROFILE,
    "openvino-cpu": openvino.PROFILE,
    "litert": litert.PROFILE,
    "onnxruntime-weights": onnxruntime_weights.PROFILE,
    "openvino-weights": openvino_weights.PROFILE,
    "onnxruntime-dynamic": onnxruntime_dynamic.PROFILE,
}

__all__ = ["TARGETS", "DequantizeLinear", "MatMulInteger", "MatMulNBits", "Placement", "Profile", "Target"]
