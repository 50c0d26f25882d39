"""Huawei's ACL on Ascend 310: asymmetric, per-channel weights, only the inputs of conv and linear."""

from isobit.core.arithmetic import FLOAT32
from isobit.core.granularity import PerChannel
from isobit.core.scheme import Scheme
from isobit.targets.profile import FUSED_ACTIVATIONS, GRAPH_1, Profile

PROFILE = Profile(
    name="ascend",
    vendor="Huawei ASIC (Ascend 310), ACL",
    source="MQBench (arXiv:2111.03759), Table 2: ACL, float scale, per-channel, asymmetric, graph 1, BN folded",
    assumed=(
        "requantization by a float multiplier that rounds to even; MQBench's pages, unlike its paper and its "
        "code, call the weights symmetric"
    ),
    weight=Scheme(granularity=PerChannel(0), symmetric=False),
    activation=Scheme(symmetric=False),
    placement=GRAPH_1,
    fusions=FUSED_ACTIVATIONS,
    arithmetic=FLOAT32,
    engines=("onnxruntime", "openvino"),
    formats=("onnx", "ascend"),
)
