"""Facebook's FBGEMM on x86 CPUs: asymmetric, per-channel weights."""

from isobit.core.arithmetic import FLOAT32_VNNI
from isobit.core.granularity import PerChannel
from isobit.core.scheme import Scheme
from isobit.targets.profile import FUSED_ACTIVATIONS, GRAPH_3, Profile

PROFILE = Profile(
    name="fbgemm",
    vendor="Meta, x86 CPU",
    source="MQBench (arXiv:2111.03759), Table 2: FBGEMM, float scale, per-channel, asymmetric, graph 3, BN folded",
    assumed="all that a float multiplier rounds goes to even, which is FBGEMM's rule",
    weight=Scheme(granularity=PerChannel(0), symmetric=False),
    activation=Scheme(symmetric=False),
    placement=GRAPH_3,
    fusions=FUSED_ACTIVATIONS,
    arithmetic=FLOAT32_VNNI,
    engines=("onnxruntime", "openvino"),
)
