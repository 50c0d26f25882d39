"""Ambarella's CVflow at FP16."""

from isobit.core.arithmetic import FLOAT32
from isobit.core.grid import Float16
from isobit.core.scheme import Scheme
from isobit.targets.profile import ALL_FLOAT, FUSED_ACTIVATIONS, HARDWARE_TABLE, Profile

PROFILE = Profile(
    name="ambarella-fp16",
    vendor="Ambarella CVflow",
    source=f"{HARDWARE_TABLE}, row 14: FP16",
    assumed="every op sums in float32 and rounds its result once, to nearest even, and to ±65504 at most",
    weight=Scheme(bits=16, grid=Float16()),
    activation=Scheme(bits=16, grid=Float16()),
    placement=ALL_FLOAT,
    fusions=FUSED_ACTIVATIONS,
    arithmetic=FLOAT32,
    engines=("onnxruntime",),  # OpenVINO drops casts to 16 bits and back
    widths=(16,),
    bias_bits=None,
    edge_bits=None,
    ranges="cast",
)
