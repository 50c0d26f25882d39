"""ONNX Runtime with packed weights alone: linear layers of 2, 4 or 8 bits a weight, activations in float."""

from isobit.core.arithmetic import FLOAT32
from isobit.core.granularity import PerGroup
from isobit.core.scheme import Scheme
from isobit.targets.form import MatMulNBits
from isobit.targets.profile import LINEAR_INPUTS, Profile

PROFILE = Profile(
    name="onnxruntime-weights",
    vendor="ONNX Runtime, CPU, weights alone",
    source=(
        "measured on ONNX Runtime 1.31 (tools/bench_weight_only.py): of the forms for 4-bit weights com.microsoft."
        "MatMulNBits at accuracy_level 4 is faster than float; a blockwise DequantizeLinear is slower"
    ),
    weight=Scheme(bits=4, signed=False, symmetric=False, granularity=PerGroup(1, 32)),
    activation=Scheme(),
    placement=LINEAR_INPUTS,
    fusions=frozenset(),
    arithmetic=FLOAT32,
    engines=("onnxruntime",),
    own_engine="onnxruntime",
    bias_bits=None,
    edge_bits=None,
    ranges="none",
    form=MatMulNBits(),
)
