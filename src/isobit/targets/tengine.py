"""Tengine: symmetric, per-channel weights, everything quantized."""

from isobit.core.arithmetic import FLOAT32
from isobit.core.granularity import PerChannel
from isobit.core.scheme import Scheme
from isobit.targets.profile import FUSED_ACTIVATIONS, GRAPH_3, Profile

PROFILE = Profile(
    name="tengine",
    vendor="Tengine, Arm CPU",
    source=(
        "https://github.com/OAID/Tengine/blob/tengine-lite/doc/docs_en/user_guides/quant_tool_int8.md: int8, "
        "symmetric, weights per channel, biases of 32 bits"
    ),
    assumed=(
        "neither weights nor activations take -128; every tensor has a scale (graph 3), as in the tool's table; "
        "requantization by a float multiplier that rounds to even"
    ),
    weight=Scheme(granularity=PerChannel(0), narrow=True),
    activation=Scheme(narrow=True),
    placement=GRAPH_3,
    fusions=FUSED_ACTIVATIONS,
    arithmetic=FLOAT32,
    signed_bytes=True,
    engines=("onnxruntime", "openvino"),
    widths=(8,),
    formats=("onnx", "tengine"),
)
