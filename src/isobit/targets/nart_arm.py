"""NART on Arm CPUs: asymmetric at 2 to 8 bits, one scale per tensor."""

from isobit.core.arithmetic import FIXED_POINT
from isobit.core.scheme import Scheme
from isobit.targets.profile import FUSED_ACTIVATIONS, GRAPH_3, HARDWARE_TABLE, Profile

PROFILE = Profile(
    name="nart-arm",
    vendor="Arm CPU, NART",
    source=f"{HARDWARE_TABLE}, row 8: 2 to 8 bits, linear, asymmetric, per layer",
    assumed="everything is quantized (graph 3); requantization by a fixed-point multiplier that rounds once",
    weight=Scheme(symmetric=False),
    activation=Scheme(symmetric=False),
    placement=GRAPH_3,
    fusions=FUSED_ACTIVATIONS,
    arithmetic=FIXED_POINT,
    engines=("onnxruntime", "openvino"),
    widths=(2, 3, 4, 5, 6, 7, 8),
)
