"""OpenVINO with compressed weights alone: linear layers of 4 or 8 bits a weight, activations in float."""

from isobit.core.arithmetic import OPENVINO
from isobit.core.granularity import PerGroup
from isobit.core.scheme import Scheme
from isobit.targets.profile import LINEAR_INPUTS, Profile

PROFILE = Profile(
    name="openvino-weights",
    vendor="Intel OpenVINO, CPU, weights alone",
    source=(
        "measured on OpenVINO 2026.4 (tools/bench_weight_only.py): it keeps the weights of a blockwise "
        "DequantizeLinear of 4 or 8 bits compressed in memory, and loads no type of 2 bits"
    ),
    weight=Scheme(bits=4, signed=False, symmetric=False, granularity=PerGroup(1, 32)),
    activation=Scheme(),
    placement=LINEAR_INPUTS,
    fusions=frozenset(),
    arithmetic=OPENVINO,
    engines=("openvino",),
    own_engine="openvino",
    bias_bits=None,
    edge_bits=None,
    ranges="none",
)
