"""Qualcomm's Adreno GPUs through OpenCL: FP16 without subnormals."""

from isobit.core.arithmetic import FLOAT32
from isobit.core.grid import Float16
from isobit.core.scheme import Scheme
from isobit.targets.profile import ALL_FLOAT, FUSED_ACTIVATIONS, HARDWARE_TABLE, Profile

PROFILE = Profile(
    name="adreno-fp16",
    vendor="Qualcomm Adreno 5 and 6 GPU, OpenCL",
    source=f"{HARDWARE_TABLE}, row 7: FP16 without subnormals",
    assumed=(
        "every op sums in float32 and rounds its result once, to nearest even, and to ±65504 at most"
        "; what is below 2^-14 after rounding becomes 0"
    ),
    weight=Scheme(bits=16, grid=Float16(subnormals=False)),
    activation=Scheme(bits=16, grid=Float16(subnormals=False)),
    placement=ALL_FLOAT,
    fusions=FUSED_ACTIVATIONS,
    arithmetic=FLOAT32,
    engines=("onnxruntime",),  # OpenVINO drops casts to 16 bits and back
    widths=(16,),
    bias_bits=None,
    edge_bits=None,
    ranges="cast",
)
