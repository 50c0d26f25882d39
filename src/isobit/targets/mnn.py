"""MNN: symmetric without -128, per-channel weights; convolutions, additions and pooling."""

from isobit.core.arithmetic import FLOAT32
from isobit.core.granularity import PerChannel
from isobit.core.scheme import Scheme
from isobit.targets.profile import FUSED_ACTIVATIONS, GRAPH_3_WITHOUT_MATMUL, Profile

PROFILE = Profile(
    name="mnn",
    vendor="MNN, Arm and x86 CPUs",
    source=(
        "https://github.com/alibaba/MNN/wiki/quant: values are clipped to -127..127, weights by their largest "
        "magnitude per output channel; its tool quantizes Convolution, ConvolutionDepthwise, Eltwise and Pooling"
    ),
    assumed=(
        "linear layers are convolutions of 1 x 1 and quantized too; requantization by a float multiplier that rounds "
        "to even"
    ),
    weight=Scheme(granularity=PerChannel(0), narrow=True),
    activation=Scheme(narrow=True),
    placement=GRAPH_3_WITHOUT_MATMUL,
    fusions=FUSED_ACTIVATIONS,
    arithmetic=FLOAT32,
    signed_bytes=True,
    engines=("onnxruntime", "openvino"),
    widths=(8,),
    formats=("onnx", "mnn"),
)
