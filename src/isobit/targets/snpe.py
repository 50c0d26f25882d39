"""Qualcomm's SNPE on the Hexagon DSP: asymmetric, one scale per tensor."""

from isobit.core.arithmetic import FLOAT32
from isobit.core.scheme import Scheme
from isobit.targets.profile import FUSED_ACTIVATIONS, GRAPH_3, Profile

PROFILE = Profile(
    name="snpe",
    vendor="Qualcomm DSP (Snapdragon, Hexagon)",
    source="MQBench (arXiv:2111.03759), Table 2: SNPE, float scale, per-tensor, asymmetric, graph 3, BN folded",
    assumed="requantization by a float multiplier that rounds to even",
    weight=Scheme(symmetric=False),
    activation=Scheme(symmetric=False),
    placement=GRAPH_3,
    fusions=FUSED_ACTIVATIONS,
    arithmetic=FLOAT32,
    engines=("onnxruntime", "openvino"),
    formats=("onnx", "aimet", "aimet-1.0"),
)
