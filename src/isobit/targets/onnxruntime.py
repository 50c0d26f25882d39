"""ONNX Runtime's default CPU provider on x86: u8 activations, s8 per-channel weights, everything quantized."""

from dataclasses import replace

from isobit.core.arithmetic import FLOAT32_VNNI
from isobit.core.granularity import PerChannel
from isobit.core.scheme import Scheme
from isobit.targets.profile import FUSED_ACTIVATIONS, GRAPH_3, Profile

PROFILE = Profile(
    name="onnxruntime-x86",
    vendor="ONNX Runtime, x86 CPU with VNNI",
    source=(
        "measured on ONNX Runtime 1.31: QLinearConv, QLinearAdd and QGemm need both operands and the result "
        "quantized; signed activations fall back to float"
    ),
    weight=Scheme(granularity=PerChannel(0), narrow=True),
    activation=Scheme(signed=False, symmetric=False),
    placement=replace(GRAPH_3, network_output=True),
    fusions=FUSED_ACTIVATIONS,
    arithmetic=FLOAT32_VNNI,
    offset_weights=True,
    engines=("onnxruntime",),
    own_engine="onnxruntime",
    formats=("onnx", "onnx-qoperator"),
)
