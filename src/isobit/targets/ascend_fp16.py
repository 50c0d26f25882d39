"""Huawei's ACL on Ascend 310 at FP16."""

from isobit.targets.float16 import float16_target

PROFILE = float16_target(name="ascend-fp16", vendor="Huawei ASIC (Ascend 310), ACL", row="row 12: FP16")
