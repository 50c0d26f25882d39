"""Ambarella's CVflow at FP16."""

from isobit.targets.float16 import float16_target

PROFILE = float16_target(name="ambarella-fp16", vendor="Ambarella CVflow", row="row 14: FP16")
