"""NART on NVIDIA GPUs: symmetric at 4 or 8 bits, per-channel weights."""

from isobit.core.arithmetic import FLOAT32
from isobit.core.granularity import PerChannel
from isobit.core.scheme import Scheme
from isobit.targets.profile import FUSED_ACTIVATIONS, GRAPH_2, HARDWARE_TABLE, Profile

PROFILE = Profile(
    name="nart-gpu",
    vendor="NVIDIA GPU (Turing), NART",
    source=f"{HARDWARE_TABLE}, row 3: 4 or 8 bits, linear, symmetric, per layer or channel",
    assumed=(
        "placement and fusions are those of tensorrt; of the two granularities of weights it has the finer; scales are "
        "float and requantization rounds to even"
    ),
    weight=Scheme(granularity=PerChannel(0)),
    activation=Scheme(),
    placement=GRAPH_2,
    fusions=FUSED_ACTIVATIONS,
    arithmetic=FLOAT32,
    engines=("onnxruntime", "openvino"),
    widths=(4, 8),
)
