"""NVIDIA TensorRT on GPUs: symmetric, per-channel weights, the residual added inside the convolution."""

from isobit.core.arithmetic import FLOAT32
from isobit.core.granularity import PerChannel
from isobit.core.scheme import Scheme
from isobit.targets.profile import FUSED_ACTIVATIONS, GRAPH_2, Profile

PROFILE = Profile(
    name="tensorrt",
    vendor="NVIDIA GPU (T4, P4 and later)",
    source="MQBench (arXiv:2111.03759), Table 2: TensorRT, float scale, per-channel, symmetric, graph 2, BN folded",
    assumed=(
        "requantization by a float multiplier that rounds to even; which ops TensorRT fuses beyond these is its "
        "own choice"
    ),
    weight=Scheme(granularity=PerChannel(0)),
    activation=Scheme(),
    placement=GRAPH_2,
    fusions=FUSED_ACTIVATIONS,
    arithmetic=FLOAT32,
    engines=("onnxruntime", "openvino"),
    formats=("onnx", "tensorrt", "tensorrt-cache", "tensorrt-ranges"),
)
