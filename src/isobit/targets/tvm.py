"""TVM on Arm CPUs: powers of two as scales, one scale per tensor, requantized by a shift."""

from isobit.core.arithmetic import SHIFT
from isobit.core.scheme import PowerOfTwo, Scheme
from isobit.targets.profile import FUSED_ACTIVATIONS, GRAPH_3, Profile

PROFILE = Profile(
    name="tvm",
    vendor="OctoML, Arm CPU",
    source="MQBench (arXiv:2111.03759), Table 2: TVM, 2^n scale, per-tensor, symmetric, graph 3, BN folded",
    assumed="shifts add half before they drop bits",
    weight=Scheme(scale=PowerOfTwo()),
    activation=Scheme(scale=PowerOfTwo()),
    placement=GRAPH_3,
    fusions=FUSED_ACTIVATIONS,
    arithmetic=SHIFT,
    engines=("onnxruntime", "openvino"),
)
