"""Ceva's DSPs: asymmetric, per-channel weights."""

from isobit.core.arithmetic import WIDE_FIXED_POINT
from isobit.core.granularity import PerChannel
from isobit.core.scheme import Scheme
from isobit.targets.profile import FUSED_ACTIVATIONS, GRAPH_3, HARDWARE_TABLE, Profile

PROFILE = Profile(
    name="ceva",
    vendor="Ceva DSP",
    source=f"{HARDWARE_TABLE}, row 5: 8 or 16 bits, linear, asymmetric, per layer or channel",
    assumed=(
        "of the two granularities weights have the finer; everything is quantized (graph 3); requantization by a "
        "fixed-point multiplier that rounds once; products of 16 bits are summed in 64"
    ),
    weight=Scheme(granularity=PerChannel(0), symmetric=False),
    activation=Scheme(symmetric=False),
    placement=GRAPH_3,
    fusions=FUSED_ACTIVATIONS,
    arithmetic=WIDE_FIXED_POINT,
    engines=("onnxruntime", "openvino"),
    widths=(8, 16),
)
