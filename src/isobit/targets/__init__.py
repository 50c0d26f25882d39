"""Targets: hardware as rows of data. A new one costs a file and a line in this table."""

from isobit.targets import academic, ascend, fbgemm, onnxruntime, openvino, snpe, tensorrt, tvm
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
}

__all__ = ["TARGETS", "Placement", "Profile", "Target"]
