"""What single observers promise beyond the contract: their settings, and the traps that their papers leave."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from isobit.core.errors import SettingError
from isobit.core.granularity import PerChannel
from isobit.core.scheme import Scheme
from isobit.observers import (
    CrossEntropy,
    Histogram,
    KlDivergence,
    MeanAbs,
    MeanStd,
    MinMax,
    MovingAverage,
    Mse,
    ObserverSettings,
    Percentile,
)
from isobit.observers.cross_entropy import content_keys
from isobit.observers.histogram import shrinking_path
from isobit.observers.kl_divergence import group_edges
from isobit.observers.percentile import weighted_quantile
from observers.references import kl_threshold


def scale_of(settings: ObserverSettings, x: torch.Tensor, scheme: Scheme | None = None) -> float:
    observer = settings.build(scheme or Scheme())
    observer.see(x)
    return float(observer.qparams().scale)


def normal(count: int = 20_000, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: MovingAverage(momentum=1.0), "momentum"),
        (lambda: MovingAverage(momentum=-0.1), "momentum"),
        (lambda: Percentile(percentile=0.0), "percentile"),
        (lambda: Percentile(percentile=100.1), "percentile"),
        (lambda: Histogram(candidates=1), "candidates"),
        (lambda: Mse(power=0.0), "power"),
        (lambda: Mse(steps=1), "steps"),
        (lambda: CrossEntropy(samples=0), "samples"),
        (lambda: CrossEntropy(steps=1), "steps"),
        (lambda: MeanStd(deviations=0.0), "deviations"),
    ],
)
def test_refuses_settings_out_of_range(make: Callable[[], object], name: str) -> None:
    with pytest.raises(SettingError, match=f"^{name} has to be"):
        make()


def test_weighted_quantile_equals_numpy_on_repeated_values() -> None:
    values, weights = np.sort(np.random.default_rng(0).normal(size=50)), np.arange(1, 51)
    for share in (0.0, 0.1, 0.5, 0.777, 0.9999, 1.0):
        mine = weighted_quantile(torch.tensor(values)[None], torch.tensor(weights)[None].double(), share)
        assert mine.item() == pytest.approx(np.quantile(np.repeat(values, weights), share), rel=1e-12)


def test_percentile_100_is_min_max() -> None:
    x = normal()
    for scheme in (Scheme(), Scheme(signed=False, symmetric=False)):
        assert scale_of(Percentile(percentile=100.0), x, scheme) == scale_of(MinMax(), x, scheme)


def test_mse_finds_the_known_optimum_of_a_gaussian() -> None:
    """The step of the uniform quantizer with 2^bits levels (Max 1960, table II)."""
    for bits, step in {3: 0.5860, 4: 0.3352, 5: 0.1881, 6: 0.1041}.items():
        x = normal(400_000)
        scale = scale_of(Mse(), torch.cat([x, -x]), Scheme(bits=bits, signed=False, symmetric=False))
        assert scale == pytest.approx(step, rel=0.06)


def test_a_higher_power_clips_less() -> None:
    x = normal()
    scales = [scale_of(Mse(power=p), x, Scheme(bits=4)) for p in (1.0, 2.0, 2.4, 4.0)]
    assert scales == sorted(scales) and scales[0] < scales[-1]


def test_the_shrinking_path_takes_the_cheaper_end() -> None:
    """By hand: values at 0.5, 1.5 (9 times), 3.5 and at -1.5, -2.5; cutting bin 3 costs ¼, and so does bin -2."""
    right, left = torch.tensor([[1, 9, 0, 1]]), torch.tensor([[0, 1, 1, 0]])
    low, high, start = shrinking_path(right, left)
    assert start.item() == 1  # the empty bin at -3
    path = list(zip(low[0].tolist(), high[0].tolist(), strict=True))
    # costs of the upper end at 4, 3, 2, 1, 0: 0, .25, 2.25, 8.5, 34.75; of the lower at -3, -2, -1, 0: 0, .25, 2.5, 8.5
    assert path == [(-4, 4), (-3, 4), (-3, 3), (-2, 3), (-2, 2), (-1, 2), (0, 2), (0, 1), (0, 0)]


def test_kl_groups_are_tensorrts() -> None:
    assert group_edges(Scheme(bits=8), one_sided=False).tolist() == np.linspace(0, 1, 129).tolist()
    assert len(group_edges(Scheme(bits=8, signed=False), one_sided=True)) == 257


def test_kl_does_not_stop_at_the_first_lone_value() -> None:
    """Two far modes and one value near 0: there P and Q are the same spike, and TensorRT's divergence is 0."""
    x = torch.cat([normal() * 0.2 - 1, normal(seed=1) * 0.2 + 3, torch.tensor([0.1])])
    assert scale_of(KlDivergence(), x) * 127 > 3


def test_kl_falls_back_to_min_max_with_fewer_bins_than_levels() -> None:
    x = normal(5000).abs()
    scheme = Scheme(bits=10, signed=False)
    assert scale_of(KlDivergence(bins=512), x, scheme) == scale_of(MinMax(), x, scheme)


def test_kl_equals_the_loop_over_all_2048_bins() -> None:
    """The contract uses fewer bins, as the loop takes long."""
    x = normal(100_000)
    width = 2.0 ** (np.frexp(float(x.abs().max()))[1] - 11)
    expected = kl_threshold(x.abs().double().numpy(), width, Scheme(bits=4), False)
    assert scale_of(KlDivergence(bins=2048), x, Scheme(bits=4)) == pytest.approx(expected / 7, rel=1e-6)


def test_mean_std_never_widens() -> None:
    x = torch.tensor([-1.0, 1.0]).repeat(10)
    assert scale_of(MeanStd(deviations=3.0), x) == scale_of(MinMax(), x)


def test_mean_std_of_a_small_spread_far_from_zero() -> None:
    """The sum of squares minus the square of the sum would lose everything here."""
    x = 1000 + normal(10_000) * 1e-3
    observer = MeanStd(deviations=2.0).build(Scheme(bits=8, signed=False))
    for part in x.split(777):
        observer.see(part)
    expected = x.double().mean() + 2 * x.double().std(correction=0)
    assert float(observer.qparams().range()[1]) == pytest.approx(float(expected), rel=1e-7)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_mean_abs_is_the_initial_scale_of_lsq(bits: int) -> None:
    x = normal()
    positive = max(1, 2 ** (bits - 1) - 1)
    expected = 2 * float(x.double().abs().mean()) / positive**0.5
    assert scale_of(MeanAbs(), x, Scheme(bits=bits)) == pytest.approx(expected, rel=1e-6)


def test_cross_entropy_keeps_the_winning_logit_where_mse_clips_it() -> None:
    """One logit stands out of a thousand: clipping it is cheap in squares and dear in the answer."""
    logits = normal(64 * 1000).reshape(64, 1000)
    logits[torch.arange(64), torch.arange(64)] = 12.0
    scheme = Scheme(bits=4)
    assert scale_of(CrossEntropy(), logits, scheme) > 1.2 * scale_of(Mse(), logits, scheme)


def test_cross_entropy_shrinks_all_scales_by_one_factor() -> None:
    logits = normal(64 * 10).reshape(64, 10) * torch.linspace(1, 5, 10)
    scheme = Scheme(bits=3, granularity=PerChannel(1))
    together, widest = (settings.build(scheme) for settings in (CrossEntropy(), MinMax()))
    together.see(logits)
    widest.see(logits)
    factors = together.qparams().scale / widest.qparams().scale
    assert torch.allclose(factors, factors[0].expand(10), rtol=1e-6) and factors[0] < 1


def test_cross_entropy_takes_classes_on_any_axis() -> None:
    logits = normal(2 * 5 * 3 * 4).reshape(2, 5, 3, 4) * 4
    last = logits.movedim(1, -1)
    assert scale_of(CrossEntropy(axis=1), logits, Scheme(bits=3)) == scale_of(CrossEntropy(), last, Scheme(bits=3))
    with pytest.raises(SettingError, match="axis"):
        scale_of(CrossEntropy(axis=1), torch.ones(3))
    observer = CrossEntropy().build(Scheme())
    observer.see(torch.ones(2, 3))
    with pytest.raises(SettingError, match="classes"):
        observer.see(torch.ones(2, 4))


def test_content_keys_tell_rows_apart_and_spread_evenly() -> None:
    rows = torch.cat([normal(4000).reshape(1000, 4), torch.eye(4), 2 * torch.eye(4)])
    keys = content_keys(rows, torch.zeros_like(rows, dtype=torch.int64))
    assert len(keys.unique()) == len(rows)
    assert torch.equal(keys.flip(0), content_keys(rows.flip(0), torch.zeros_like(rows, dtype=torch.int64)))
    assert 0.45 < (keys > 0).double().mean() < 0.55
