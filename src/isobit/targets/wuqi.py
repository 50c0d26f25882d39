"""WUQI's NPU: Ristretto, which is dynamic fixed point: powers of two as scales, one per tensor."""

from isobit.core.arithmetic import WIDE_SHIFT
from isobit.core.scheme import PowerOfTwo, Scheme
from isobit.targets.profile import FUSED_ACTIVATIONS, GRAPH_3, HARDWARE_TABLE, Profile

PROFILE = Profile(
    name="wuqi",
    vendor="WUQI NPU",
    source=(
        f"{HARDWARE_TABLE}, row 9: 8 or 16 bits, Ristretto; what that is: Gysel, Motamedi, Ghiasi 2016, "
        "arXiv:1604.03168, section 4.2"
    ),
    assumed="everything is quantized (graph 3); shifts add half before they drop bits; sums of 16-bit products have 64",
    weight=Scheme(scale=PowerOfTwo()),
    activation=Scheme(scale=PowerOfTwo()),
    placement=GRAPH_3,
    fusions=FUSED_ACTIVATIONS,
    arithmetic=WIDE_SHIFT,
    engines=("onnxruntime", "openvino"),
    widths=(8, 16),
)
