"""LiteRT (TensorFlow Lite) with XNNPACK on CPUs: signed bytes, per-channel weights, everything quantized."""

from dataclasses import replace

from isobit.core.arithmetic import XNNPACK
from isobit.core.granularity import PerChannel
from isobit.core.scheme import Scheme
from isobit.targets.profile import FUSED_ACTIVATIONS, GRAPH_3, Profile

PROFILE = Profile(
    name="litert",
    vendor="LiteRT (TensorFlow Lite), Arm and x86 CPUs",
    source=(
        "LiteRT 8-bit quantization specification, https://ai.google.dev/edge/litert/models/quantization_spec: weights "
        "in -127..127 with zero point 0, per axis; activations in -128..127 with any zero point; biases of 32 bits; "
        "average pooling keeps the scale. Arithmetic: measured on LiteRT 2.3"
    ),
    weight=Scheme(granularity=PerChannel(0), narrow=True),
    activation=Scheme(symmetric=False),
    placement=replace(
        GRAPH_3,
        inputs=GRAPH_3.inputs - {"avg_pool"},
        outputs=GRAPH_3.outputs - {"avg_pool"},
        shared=GRAPH_3.shared | {"avg_pool"},
        network_output=True,
    ),
    fusions=FUSED_ACTIVATIONS,
    arithmetic=XNNPACK,
    engines=("litert", "litert-reference"),
    own_engine="litert",
    formats=("litert", "onnx"),
)
