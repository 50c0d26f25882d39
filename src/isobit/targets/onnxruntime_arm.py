"""ONNX Runtime's default CPU provider on Arm64: the formats of onnxruntime-x86."""

from dataclasses import replace

from isobit.core.arithmetic import FLOAT32
from isobit.core.granularity import PerChannel
from isobit.core.scheme import Scheme
from isobit.targets.profile import FUSED_ACTIVATIONS, GRAPH_3, Profile

PROFILE = Profile(
    name="onnxruntime-arm",
    vendor="ONNX Runtime, Arm64 CPU with dot products (udot, sdot)",
    source=(
        "https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html: the default is QDQ with s8 "
        "weights; u8 with s8 does not saturate on Arm64. Measured on ONNX Runtime 1.31 on x86: what fuses"
    ),
    assumed="Arm64 fuses what x86 does, and rounds alike: its files run on ONNX Runtime for x86 here",
    weight=Scheme(granularity=PerChannel(0), narrow=True),
    activation=Scheme(signed=False, symmetric=False),
    placement=replace(GRAPH_3, network_output=True),
    fusions=FUSED_ACTIVATIONS,
    arithmetic=FLOAT32,
    offset_weights=True,
    engines=("onnxruntime",),
)
