"""ncnn: symmetric without -128, per-channel weights, only the inputs of convolutions and linear layers."""

from isobit.core.arithmetic import FLOAT32
from isobit.core.granularity import PerChannel
from isobit.core.scheme import Scheme
from isobit.targets.profile import FUSED_ACTIVATIONS, GRAPH_1, Profile

PROFILE = Profile(
    name="ncnn",
    vendor="ncnn, Arm and x86 CPUs",
    source=(
        "https://github.com/Tencent/ncnn/wiki/quantized-int8-inference and its table of one scale per input and one "
        "per output channel: convolution, depthwise convolution, inner product; values are clipped to -127..127"
    ),
    assumed=(
        "ncnn rounds ties away from zero and adds biases in float; here ties go to even, and biases have 32 bits at "
        "the scale of input times weight"
    ),
    weight=Scheme(granularity=PerChannel(0), narrow=True),
    activation=Scheme(narrow=True),
    placement=GRAPH_1,
    fusions=FUSED_ACTIVATIONS,
    arithmetic=FLOAT32,
    signed_bytes=True,
    engines=("onnxruntime", "openvino", "ncnn"),
    own_engine="ncnn",
    widths=(8,),
    formats=("onnx", "ncnn", "ncnn-int8"),
)
