"""AMD's Vitis AI on DPUs in FPGAs: powers of two as scales, symmetric, one per tensor."""

from isobit.core.arithmetic import SHIFT
from isobit.core.scheme import PowerOfTwo, Scheme
from isobit.targets.profile import FUSED_ACTIVATIONS, GRAPH_3, Profile

PROFILE = Profile(
    name="vitis-ai",
    vendor="AMD Xilinx DPU (FPGA), Vitis AI",
    source=(
        "UG1414, https://docs.amd.com/r/en-US/ug1414-vitis-ai/Quantizing-with-Float-Scale: 2^n scales, symmetric, per "
        "tensor; MQBench, https://mqbench.readthedocs.io/en/latest/user_guide/hardware/vitis.html: levels -128..127"
    ),
    assumed=(
        "the DPU rounds ties of activations up and holds biases in 8 bits with a scale of their own; here ties of what "
        "is quantized go to even, and biases have 32 bits at the scale of input times weight"
    ),
    weight=Scheme(scale=PowerOfTwo()),
    activation=Scheme(scale=PowerOfTwo()),
    placement=GRAPH_3,
    fusions=FUSED_ACTIVATIONS,
    arithmetic=SHIFT,
    engines=("onnxruntime", "openvino"),
    widths=(8,),
    formats=("onnx", "vitis-ai"),
)
