"""Hisilicon's NNIE: logarithmic weights and activations, 16 levels in an octave, one range for a tensor."""

from isobit.core.arithmetic import FLOAT32
from isobit.core.grid import Geometric
from isobit.core.scheme import Scheme
from isobit.targets.profile import FUSED_ACTIVATIONS, GRAPH_3, Profile

PROFILE = Profile(
    name="nnie",
    vendor="Hisilicon 3559, 3519, 3516, NNIE",
    source=(
        "MQBench's pages, https://mqbench.readthedocs.io/en/latest/user_guide/hardware/nnie.html: per layer, a sign "
        "and 7 bits of exponent in sixteenths of an octave (GFPQ); the largest value has a whole number of them"
    ),
    assumed=(
        "everything is quantized (graph 3); sums of products and biases are float32, and a sum is rounded to the next "
        "grid once; the format of 16 bits is not published and left out"
    ),
    weight=Scheme(grid=Geometric()),
    activation=Scheme(grid=Geometric()),
    placement=GRAPH_3,
    fusions=FUSED_ACTIVATIONS,
    arithmetic=FLOAT32,
    engines=("onnxruntime", "openvino"),
    widths=(8,),
    formats=("onnx", "nnie"),
)
