"""OpenVINO's CPU plugin: no zero points, s8 per-channel weights, the residual added inside the convolution."""

from dataclasses import replace

from isobit.core.arithmetic import FLOAT32_VNNI
from isobit.core.granularity import PerChannel
from isobit.core.scheme import Scheme
from isobit.targets.profile import FUSED_ACTIVATIONS, GRAPH_2, Profile

PROFILE = Profile(
    name="openvino-cpu",
    vendor="Intel OpenVINO, x86 CPU with VNNI or AMX",
    source=(
        "measured on OpenVINO 2026.4: a convolution fuses the add that follows and drops the rounding of a "
        "quantizer between the two; a zero point costs time, and signed bytes do not (tools/bench_latency.py); it "
        "refuses a file in which a quantized constant is added to an embedding; rounding what softmax and GELU "
        "read costs time, and so do products inside attention in float"
    ),
    weight=Scheme(granularity=PerChannel(0), narrow=True),
    activation=Scheme(adapt_sign=True),
    placement=replace(GRAPH_2, constant_operands=False, float_readers=False, attention_products=True),
    fusions=FUSED_ACTIVATIONS,
    signed_bytes=True,
    arithmetic=FLOAT32_VNNI,
    offset_weights=True,
    engines=("openvino",),
    formats=("onnx", "openvino"),
    own_engine="openvino",
)
