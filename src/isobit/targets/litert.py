"""LiteRT (TensorFlow Lite): signed bytes, narrow symmetric per-channel weights, asymmetric activations."""

from dataclasses import replace

from isobit.core.arithmetic import FLOAT32
from isobit.core.granularity import PerChannel
from isobit.core.scheme import Scheme
from isobit.targets.profile import FUSED_ACTIVATIONS, GRAPH_3, Profile

PROFILE = Profile(
    name="litert",
    vendor="LiteRT (TensorFlow Lite), CPU with XNNPACK",
    source=(
        "LiteRT 8-bit quantization specification, https://ai.google.dev/edge/litert/models/quantization_spec: weights "
        "in -127..127 with zero point 0, per axis; activations in -128..127 with any zero point; biases of 32 bits"
    ),
    assumed="requantization by a float multiplier, as XNNPACK does; residuals are added in an op of their own",
    weight=Scheme(granularity=PerChannel(0), narrow=True),
    activation=Scheme(symmetric=False),
    placement=replace(GRAPH_3, network_output=True),
    fusions=FUSED_ACTIVATIONS,
    arithmetic=FLOAT32,
    signed_bytes=True,
    engines=("onnxruntime", "openvino"),
    widths=(8,),
)
