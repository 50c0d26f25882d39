"""ONNX Runtime with dynamic ranges: linear layers on integers, the range of activations found while they run."""

from isobit.core.arithmetic import FLOAT32_VNNI
from isobit.core.granularity import PerChannel
from isobit.core.scheme import Scheme
from isobit.targets.form import MatMulInteger
from isobit.targets.profile import LINEAR_INPUTS, Profile

PROFILE = Profile(
    name="onnxruntime-dynamic",
    vendor="ONNX Runtime, x86 CPU with VNNI, dynamic ranges",
    source=(
        "DynamicQuantizeLinear, https://onnx.ai/onnx/operators/onnx__DynamicQuantizeLinear.html; measured on ONNX "
        "Runtime 1.31: it becomes DynamicQuantizeMatMul or MatMulIntegerToFloat"
    ),
    weight=Scheme(granularity=PerChannel(0), narrow=True),
    activation=Scheme(signed=False, symmetric=False),
    placement=LINEAR_INPUTS,
    fusions=frozenset(),
    arithmetic=FLOAT32_VNNI,
    engines=("onnxruntime",),
    own_engine="onnxruntime",
    bias_bits=None,
    ranges="dynamic",
    form=MatMulInteger(),
)
