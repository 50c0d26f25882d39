"""ExecuTorch with XNNPACK: signed bytes, symmetric per-channel weights, asymmetric activations."""

from dataclasses import replace

from isobit.core.arithmetic import EXECUTORCH
from isobit.core.granularity import PerChannel
from isobit.core.scheme import Scheme
from isobit.targets.profile import FUSED_ACTIVATIONS, GRAPH_3, Profile

PROFILE = Profile(
    name="executorch-xnnpack",
    vendor="ExecuTorch, CPU with XNNPACK",
    source=(
        "https://docs.pytorch.org/executorch/stable/backends/xnnpack/xnnpack-quantization.html: 8-bit symmetric "
        "weights per channel, 8-bit asymmetric activations; linear, convolution, add, mul, cat, adaptive avg pool"
    ),
    assumed="weights leave out -128; requantization by a float multiplier, as XNNPACK does; biases become 32 bits",
    weight=Scheme(granularity=PerChannel(0), narrow=True),
    activation=Scheme(symmetric=False),
    placement=replace(GRAPH_3, network_output=True),
    fusions=FUSED_ACTIVATIONS,
    arithmetic=EXECUTORCH,
    signed_bytes=True,
    engines=("onnxruntime", "openvino", "executorch"),
    own_engine="executorch",
    formats=("onnx", "pt2e"),
    widths=(8,),
)
