"""The setting of most papers: conv and linear inputs, one scale per tensor, unsigned after ReLU, BN not folded."""

from isobit.core.arithmetic import FLOAT32
from isobit.core.granularity import PerTensor
from isobit.core.scheme import Scheme
from isobit.targets.profile import FUSED_ACTIVATIONS, GRAPH_1, Profile

PROFILE = Profile(
    name="academic",
    vendor="none: no hardware computes like this",
    source="MQBench (Li et al. 2021, arXiv:2111.03759), section 3.1; its code's `academic` flags",
    assumed="that some machine computes so: files run on engines whose kernels take other formats, and partly in float",
    weight=Scheme(granularity=PerTensor()),
    activation=Scheme(adapt_sign=True),
    placement=GRAPH_1,
    fusions=FUSED_ACTIVATIONS,
    arithmetic=FLOAT32,
    engines=("onnxruntime", "openvino"),
    fold_bn=False,
)
