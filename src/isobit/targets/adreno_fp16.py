"""Qualcomm's Adreno GPUs through OpenCL: FP16 without subnormals."""

from isobit.targets.float16 import float16_target

PROFILE = float16_target(
    name="adreno-fp16",
    vendor="Qualcomm Adreno 5 and 6 GPU, OpenCL",
    row="row 7: FP16 without subnormals",
    subnormals=False,
)
