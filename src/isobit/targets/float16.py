"""What targets that compute with floats of 16 bits have in common."""

from isobit.core.arithmetic import FLOAT32
from isobit.core.grid import Float16
from isobit.core.scheme import Scheme
from isobit.targets.profile import ALL_FLOAT, FUSED_ACTIVATIONS, HARDWARE_TABLE, Profile


def float16_target(*, name: str, vendor: str, row: str, subnormals: bool = True) -> Profile:
    """A target whose weights and activations are float16; `row` is that of the hardware table, with what it says."""
    scheme = Scheme(bits=16, grid=Float16(subnormals=subnormals))
    zeros = "" if subnormals else "; what is below 2^-14 after rounding becomes 0"
    return Profile(
        name=name,
        vendor=vendor,
        source=f"{HARDWARE_TABLE}, {row}",
        assumed=f"every op sums in float32 and rounds its result once, to nearest even, and to ±65504 at most{zeros}",
        weight=scheme,
        activation=scheme,
        placement=ALL_FLOAT,
        fusions=FUSED_ACTIVATIONS,
        arithmetic=FLOAT32,
        engines=("onnxruntime",),  # OpenVINO drops casts to 16 bits and back
        widths=(16,),
        bias_bits=None,
        edge_bits=None,
        ranges="cast",
    )
