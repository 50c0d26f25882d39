"""What every target of the table promises, and the lists of what each quantizes in three known networks."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import fx

from golden_files import check_golden
from isobit.benchmark.models import MODELS
from isobit.core.errors import SettingError
from isobit.core.granularity import PerChannel, PerTensor, blocks, expand, from_blocks
from isobit.core.grid import Geometric
from isobit.core.qparams import qparams_of_range
from isobit.core.scheme import PowerOfTwo, Scheme
from isobit.engines import ENGINES
from isobit.graph.capture import capture
from isobit.graph.ops import KINDS
from isobit.graph.passes import FoldBatchNorm, SplitAttention, UnifyGlobalPool
from isobit.graph.placement import Plan, place
from isobit.quantizers import Fixed
from isobit.targets import TARGETS, Profile


@pytest.fixture(params=TARGETS)
def profile(request: pytest.FixtureRequest) -> Profile:
    return TARGETS[request.param]


def test_it_says_who_it_is_and_where_that_is_known_from(profile: Profile) -> None:
    assert TARGETS[profile.name] is profile
    assert profile.vendor
    assert any(word in profile.source for word in ("arXiv:", "measured on", "http"))
    assert profile.engines
    assert set(profile.engines) <= set(ENGINES)
    assert profile.own_engine in (None, *profile.engines)
    assert profile.assumed or profile.own_engine, "what no engine here shows is assumed: say what"


def test_every_kind_is_known(profile: Profile) -> None:
    check_kinds(profile)


def check_kinds(profile: Profile) -> None:
    """Every kind of op that the profile names exists, and a fused pair ends on something that it can compute."""
    named = profile.placement.kinds | {kind for pair in profile.fusions for kind in pair}
    assert named <= KINDS
    assert profile.placement.inputs


def test_every_scheme_is_expressible(profile: Profile) -> None:
    check_schemes(profile)


def check_schemes(profile: Profile) -> None:
    """A static quantizer can be built and calibrated in each scheme, on its grid and within half a step."""
    x = torch.randn(6, 64, generator=torch.Generator().manual_seed(0))
    for bits in sorted(set(profile.widths) - {1}):
        wide = profile.with_bits(weight=bits, activation=bits)
        for scheme in (wide.weight, wide.activation):
            values = blocks(x, scheme.granularity)
            low, high = (
                from_blocks(end, tuple(x.shape), scheme.granularity) for end in (values.amin(1), values.amax(1))
            )
            quantizer = Fixed().build(scheme)
            quantizer.calibrate(qparams_of_range(low, high, scheme))
            grid = quantizer.grid()
            assert torch.equal(grid.dequantize(grid.quantize(x)), quantizer(x))
            lowest, highest, step = (expand(end, 2, scheme.granularity) for end in (*grid.range(), grid.scale))
            inside = x.clamp(lowest, highest)  # a power-of-two scale may clip
            if isinstance(scheme.grid, Geometric):  # half a step is a ratio
                step = torch.maximum(step, inside.abs() * (2 ** (1 / scheme.grid.steps) - 1))
            assert bool(((quantizer(x) - inside).abs() <= 0.511 * step).all())
    assert isinstance(profile.activation.granularity, PerTensor)


@pytest.mark.parametrize("bits", [0, 9, True, 2.5])
def test_widths_that_no_engine_computes_with(profile: Profile, bits: int) -> None:
    with pytest.raises(SettingError, match=rf"{profile.name} computes with .* bits, got {bits}"):
        profile.with_bits(weight=bits)
    assert list(profile.widths) == sorted(set(profile.widths))
    assert {profile.weight.bits, profile.activation.bits} | {profile.edge_bits} <= {None, *profile.widths}


def test_few_bits_that_lie_in_bytes_have_all_levels_and_a_zero_point() -> None:
    profile = TARGETS["onnxruntime-x86"]
    eight, four = profile.weight_scheme(8), profile.with_bits(weight=2).weight_scheme(4)
    assert (eight.quant_min, eight.quant_max, eight.symmetric) == (-127, 127, True)
    assert (four.quant_min, four.quant_max, four.symmetric) == (-8, 7, False)
    assert TARGETS["tensorrt"].weight_scheme(4).symmetric


def test_table_2_of_mqbench() -> None:
    """Scale, granularity, symmetry and graph of each hardware row (arXiv:2111.03759, Table 2)."""
    rows = {
        "tensorrt": (False, True, True, 2),
        "ascend": (False, True, False, 1),
        "tvm": (True, False, True, 3),
        "snpe": (False, False, False, 3),
        "fbgemm": (False, True, False, 3),
    }
    for name, (shift, per_channel, symmetric, graph) in rows.items():
        profile = TARGETS[name]
        for scheme in (profile.weight, profile.activation):
            assert isinstance(scheme.scale, PowerOfTwo) == shift
            assert scheme.symmetric == symmetric
            assert scheme.signed
            assert not scheme.narrow
        assert isinstance(profile.weight.granularity, PerChannel) == per_channel
        assert profile.fold_bn
        assert profile.edge_bits == 8
        placement = profile.placement
        assert (placement.every_consumer, placement.conv_feeds_add) == {
            1: (False, False), 2: (True, True), 3: (True, False)
        }[graph]  # fmt: skip
    academic = TARGETS["academic"]
    assert (academic.weight, academic.activation) == (Scheme(), Scheme(adapt_sign=True))
    assert not academic.fold_bn
    assert academic.placement == TARGETS["ascend"].placement


NETWORKS = ("resnet18", "mobilenet_v2", "vit_tiny")


@pytest.fixture(scope="module")
def captured() -> dict[str, fx.GraphModule]:
    image = torch.randn(2, 3, 224, 224)
    return {name: capture(MODELS[name]().eval(), image, check=False) for name in NETWORKS}


def plan(captured: fx.GraphModule, profile: Profile) -> Plan:
    model = copy.deepcopy(captured)
    UnifyGlobalPool().apply(model)
    if profile.placement.attention_products:
        SplitAttention().apply(model)
    if profile.fold_bn:
        FoldBatchNorm().apply(model)
    return place(model, profile)


@pytest.mark.parametrize("network", NETWORKS)
def test_what_is_quantized(network: str, profile: Profile, captured: dict[str, fx.GraphModule]) -> None:
    check_golden(f"{network}.{profile.name}.txt", list(plan(captured[network], profile).nodes()))


def test_first_and_last_layer_keep_eight_bits(profile: Profile, captured: dict[str, fx.GraphModule]) -> None:
    if "conv" not in profile.placement.kinds:
        pytest.skip("the one linear layer is first and last")
    if profile.ranges == "cast":
        pytest.skip("a float of 16 bits has no other widths")
    if isinstance(profile.weight.grid, Geometric):
        pytest.skip("16 steps an octave need 6 bits and more")
    profile = replace(profile, widths=(2, 4, 8))
    found = plan(captured["resnet18"], profile.with_bits(weight=4, activation=2))
    weights = {w.name: w.scheme.bits for w in found.weights}
    assert {name for name, bits in weights.items() if bits == 8} == {"conv1", "fc"}
    assert set(weights.values()) == {8, 4}
    inputs = {p.name for p in found.activations if p.scheme.bits == 8}
    last = "avgpool" if "avgpool" in {p.name for p in found.activations} else "flatten"
    assert inputs - {"fc"} == {"x", last}
    assert {p.scheme.bits for p in found.activations} == {8, 2}
    everywhere = plan(captured["resnet18"], replace(profile.with_bits(weight=4, activation=2), edge_bits=None))
    assert {p.scheme.bits for p in everywhere.activations} == {2}
    assert {w.scheme.bits for w in everywhere.weights} == {4}
