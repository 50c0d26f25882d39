"""Qualcomm's QNN on the Hexagon Tensor Processor: unsigned activations, symmetric per-channel weights."""

from dataclasses import replace

from isobit.core.arithmetic import HEXAGON
from isobit.core.granularity import PerChannel
from isobit.core.scheme import Scheme
from isobit.targets.profile import FUSED_ACTIVATIONS, GRAPH_3, Profile

PROFILE = Profile(
    name="qnn-htp",
    vendor="Qualcomm Hexagon Tensor Processor, QNN",
    source=(
        "https://onnxruntime.ai/docs/execution-providers/QNN-ExecutionProvider.html: QDQ with activations of unsigned "
        "8 or 16 bits, weights of 8 bits, symmetric where they have a scale per channel"
    ),
    assumed=(
        "the network's output is quantized; 8 bits are requantized as onnxruntime-qnn simulates it, 16 bits by a "
        "fixed-point multiplier that rounds once, and their products are summed in 64"
    ),
    weight=Scheme(granularity=PerChannel(0), narrow=True),
    activation=Scheme(signed=False, symmetric=False),
    placement=replace(GRAPH_3, network_output=True),
    fusions=FUSED_ACTIVATIONS,
    arithmetic=HEXAGON,
    engines=("qnn-htp", "onnxruntime", "openvino"),
    own_engine="qnn-htp",
    widths=(4, 8, 16),
    formats=("onnx", "aimet"),
)
