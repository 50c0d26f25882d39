import math

import numpy as np
import pytest
import torch
from torch import nn

from analysis.nets import branches, mlp
from isobit.analysis.distribution import BINS, Counts, Distribution, clipped, distributions
from isobit.core.errors import CalibrationError
from isobit.core.granularity import PerChannel
from isobit.core.qparams import QParams, qparams_of_range
from isobit.core.scheme import Scheme
from isobit.graph.slots import Slot
from isobit.quantizers import Fixed


def counted(*parts: np.ndarray) -> Counts:
    counts = Counts()
    for part in parts:
        counts.see(torch.from_numpy(part))
    return counts


@pytest.mark.parametrize("scale", [1e-20, 0.03, 1.0, 777.0, 1e20])
@pytest.mark.parametrize("rectified", [False, True])
def test_equals_numpy_on_all_values(scale: float, rectified: bool) -> None:
    """Any split, growing ranges: the counts are those of numpy over the same edges."""
    rng = np.random.default_rng(0)
    parts = [(rng.normal(size=n) * scale * s).astype(np.float32) for n, s in ((100, 0.01), (30_000, 1.0), (7, 3.0))]
    parts = [np.maximum(p, 0) if rectified else p for p in parts]
    whole = np.concatenate(parts)
    found = counted(*parts).histogram()
    expected, _ = np.histogram(whole.astype(np.float64), np.linspace(found.low, found.high, len(found.counts) + 1))
    assert found.counts == tuple(expected)
    assert found.low <= whole.min()
    assert found.high > whole.max()
    assert found == counted(whole).histogram() == counted(*reversed(parts)).histogram()
    assert BINS // 2 <= max(-found.low, found.high) / ((found.high - found.low) / len(found.counts)) <= BINS


def test_zeros_alone_fill_one_bin() -> None:
    found = counted(np.zeros(10, np.float32)).histogram()
    assert found.counts == (10,)
    assert found.low == 0.0 < found.high


def test_nothing_and_what_is_not_finite() -> None:
    with pytest.raises(CalibrationError, match="no value"):
        Counts().histogram()
    for value in (math.nan, math.inf):
        with pytest.raises(CalibrationError, match="NaN or Inf"):
            Counts().see(torch.tensor([0.0, value]))
    slot = Slot(Fixed().build(Scheme()), name="x")
    slot.quantizer.calibrate(QParams(torch.tensor(1.0), torch.tensor(0), Scheme()))
    with pytest.raises(CalibrationError, match="conv7 holds NaN or Inf in the float network"):
        Distribution(slot, name="conv7", role="activation").see(torch.tensor([math.nan]))


@pytest.mark.parametrize("scheme", [Scheme(), Scheme(bits=3, narrow=True), Scheme(signed=False, symmetric=False)])
def test_what_is_clipped_is_what_the_levels_cannot_hold(scheme: Scheme) -> None:
    x = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    grid = qparams_of_range(torch.tensor(-1.1), torch.tensor(1.6), scheme)
    unclipped = torch.round(x.double() / grid.scale.double()) + grid.zero_point
    expected = int(((unclipped < scheme.quant_min) | (unclipped > scheme.quant_max)).sum())
    assert expected > 100
    assert abs(clipped(x, grid) - expected) <= 1  # a tie


def test_per_channel_ranges() -> None:
    weight = torch.tensor([[1.0, -1.0], [100.0, 50.0]])
    scheme = Scheme(granularity=PerChannel(0))
    grid = qparams_of_range(torch.tensor([-0.5, -100.0]), torch.tensor([0.5, 100.0]), scheme)
    assert clipped(weight, grid) == 2


def test_records_of_a_network() -> None:
    model, x = branches()
    records = {r.name: r for r in distributions(model, [x])}
    weights = [name for name, r in records.items() if r.role == "weight"]
    assert weights == ["stem.weight", "body.weight", "twice.weight", "twice:2.weight", "head.weight"]
    assert [n for n, r in records.items() if r.role == "activation"] == [
        "x", "relu", "pool", "body", "add", "relu:2", "twice:2", "mean", "head",
    ]  # fmt: skip
    stem = records["stem.weight"]
    weight = model.stem.weight.detach()
    assert (len(stem.scale), len(stem.zero_point), sum(stem.histogram.counts)) == (8, 8, weight.numel())
    assert stem.clip_high == pytest.approx(float(weight.abs().max()), rel=1e-6)
    assert stem.clip_low == -stem.clip_high
    inputs = records["x"]
    assert (inputs.bits, inputs.quant_min, inputs.quant_max, len(inputs.scale)) == (8, 0, 255, 1)
    assert sum(inputs.histogram.counts) == x.numel()
    assert (inputs.clip_high - inputs.clip_low) == pytest.approx(float(x.max() - x.min()), rel=1e-5)
    assert records["relu"].histogram.low == 0.0


def test_activations_are_the_float_ones() -> None:
    """Two bits in front change nothing in the histogram behind: it shows the float network's values."""
    coarse, x = mlp(bits=2)
    fine, _ = mlp(bits=8)
    found = [next(r for r in distributions(m, [x]) if r.name == "1") for m in (coarse, fine)]
    assert sum(found[0].histogram.counts) == 64 * 16
    hidden = torch.relu(x @ fine.get_submodule("0").weight.T + fine.get_submodule("0").bias)
    assert found[1].histogram.counts == counted(hidden.detach().numpy()).histogram().counts


def test_dead_channels() -> None:
    slot = Slot(Fixed().build(Scheme()), name="x")
    slot.quantizer.calibrate(QParams(torch.tensor(1.0), torch.tensor(0), Scheme()))
    found = Distribution(slot, name="x", role="activation")
    x = torch.zeros(2, 4, 3, 3)
    x[0, 1, 2, 2] = 1.0
    found.see(x)
    assert (found.dead_channels, found.channels) == ((0, 2, 3), 4)
    found.see(x.roll(2, dims=1))
    assert found.dead_channels == (0, 2)
    assert Distribution(slot, name="w", role="weight").dead_channels == ()


def test_a_dynamic_range_is_what_was_seen() -> None:
    from isobit.recipes.workflow import quantize

    torch.manual_seed(0)
    x = torch.randn(32, 6)
    model = quantize(nn.Linear(6, 4), [x], target="tvm", activation_quantizer="dynamic")
    found = next(r for r in distributions(model, [x]) if r.role == "activation")
    assert (found.scale, found.zero_point, found.clipped) == ((), (), 0.0)
    assert (found.clip_low, found.clip_high) == (float(x.min()), float(x.max()))
