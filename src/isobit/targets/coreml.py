"""Apple's Core ML at W8A8: symmetric without -128, per-channel weights; convolutions, additions and pooling."""

from isobit.core.arithmetic import FLOAT32
from isobit.core.granularity import PerChannel
from isobit.core.scheme import Scheme
from isobit.targets.profile import FUSED_ACTIVATIONS, GRAPH_3_WITHOUT_MATMUL, Profile

PROFILE = Profile(
    name="coreml",
    vendor="Apple Neural Engine (A17 Pro, M4 and later), Core ML",
    source=(
        "https://apple.github.io/coremltools/docs-guides/source/opt-quantization-api.html: linear_symmetric "
        "activations of 8 bits, weights per channel; coremltools quantizes around conv, add, avg_pool and "
        "max_pool, in -127..127"
    ),
    assumed=(
        "linear layers are quantized as convolutions are; how the Neural Engine rounds is not published: by a float "
        "multiplier, to even"
    ),
    weight=Scheme(granularity=PerChannel(0), narrow=True),
    activation=Scheme(narrow=True),
    placement=GRAPH_3_WITHOUT_MATMUL,
    fusions=FUSED_ACTIVATIONS,
    arithmetic=FLOAT32,
    signed_bytes=True,
    engines=("onnxruntime", "openvino"),
    widths=(8,),
)
