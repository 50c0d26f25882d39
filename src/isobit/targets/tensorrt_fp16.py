"""NVIDIA TensorRT at FP16."""

from isobit.targets.float16 import float16_target

PROFILE = float16_target(name="tensorrt-fp16", vendor="NVIDIA GPU, TensorRT", row="row 2: FP16, IEEE 754")
