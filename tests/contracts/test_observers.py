"""What every observer in the table promises. A new one needs a line in `observers.references.CHECKS` and no more."""

import dataclasses
import math
import random
from contextlib import suppress
from itertools import product
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from isobit.core.errors import CalibrationError, SettingError
from isobit.core.granularity import Granularity, PerChannel, PerGroup, PerTensor, scale_shape
from isobit.core.grid import AdditivePowersOfTwo, Codebook, Grid, MidRise, PowersOfTwo, Uniform
from isobit.core.qparams import QParams
from isobit.core.scheme import PowerOfTwo, Scheme
from isobit.observers import OBSERVERS, ObserverSettings
from observers.references import BINS, CHECKS

SCHEMES = {
    str(s) + suffix: s
    for suffix, s in [
        ("", Scheme(bits=8)),
        (" narrow", Scheme(bits=4, narrow=True)),
        (" adapts", Scheme(bits=3, adapt_sign=True)),
        ("", Scheme(bits=2)),
        ("", Scheme(bits=1)),
        ("", Scheme(bits=1, signed=False)),
        ("", Scheme(bits=8, signed=False)),
        ("", Scheme(bits=8, signed=False, symmetric=False)),
        ("", Scheme(bits=4, symmetric=False)),
        ("", Scheme(bits=6, scale=PowerOfTwo())),
        ("", Scheme(bits=5, signed=False, symmetric=False, scale=PowerOfTwo())),
        ("", Scheme(bits=4, grid=PowersOfTwo())),
        ("", Scheme(bits=3, signed=False, grid=PowersOfTwo())),
        ("", Scheme(bits=1, grid=MidRise())),
        ("", Scheme(bits=3, grid=MidRise())),
        ("", Scheme(bits=4, grid=AdditivePowersOfTwo())),
        ("", Scheme(bits=2, signed=False, grid=AdditivePowersOfTwo())),
        ("", Scheme(bits=1, grid=Codebook())),
        ("", Scheme(bits=4, grid=Codebook())),
        ("", Scheme(bits=3, signed=False, grid=Codebook())),
    ]
}
FEW = [
    Scheme(bits=8),
    Scheme(bits=3, adapt_sign=True),
    Scheme(bits=8, signed=False, symmetric=False),
    Scheme(bits=4, signed=False, symmetric=False, scale=PowerOfTwo()),
    Scheme(bits=4, grid=PowersOfTwo()),
]
ORDERED = {"moving_average"}
"""Observers whose definition depends on the order and the size of the batches."""

every_observer = pytest.mark.parametrize("name", OBSERVERS)
every_scheme = pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
few_schemes = pytest.mark.parametrize("scheme", FEW, ids=str)


def settings_of(name: str, **changes: Any) -> ObserverSettings:
    known = {f.name for f in dataclasses.fields(OBSERVERS[name])}
    return OBSERVERS[name](**{k: v for k, v in changes.items() if k in known})


def observe(name: str, scheme: Scheme, batches: list[Tensor], **changes: Any) -> QParams:
    observer = settings_of(name, **changes).build(scheme)
    for batch in batches:
        observer.see(batch)
    return observer.qparams()


def batches_of(kind: str, *, count: int = 7, seed: int = 0) -> list[Tensor]:
    """(4, 6, 40) each: in all more values than a histogram keeps as they are."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 4, 6, 40, generator=generator) * torch.linspace(1, 2, 6)[:, None] + 0.3
    return list(x.relu() if kind == "relu" else x)


def same(a: QParams, b: QParams) -> bool:
    return torch.equal(a.scale, b.scale) and torch.equal(a.zero_point, b.zero_point) and a.scheme == b.scheme


@every_observer
@every_scheme
@pytest.mark.parametrize("kind", ["normal", "relu"])
def test_equals_numpy_on_all_batches_at_once(name: str, scheme: Scheme, kind: str) -> None:
    batches = batches_of(kind)
    CHECKS[name](observe(name, scheme, batches, samples=10_000, bins=BINS), [b.double().numpy() for b in batches])


@pytest.mark.parametrize("name", [name for name in OBSERVERS if name not in ORDERED])
@few_schemes
@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel(1), PerGroup(2, 20)], ids=str)
def test_any_order_and_split_gives_the_same_parameters(name: str, scheme: Scheme, granularity: Granularity) -> None:
    scheme = dataclasses.replace(scheme, granularity=granularity)
    batches = batches_of("normal")
    batches[5] *= 20  # the range grows in the middle
    expected = observe(name, scheme, batches)
    for seed in range(2):
        order = random.Random(seed).sample(batches, len(batches))
        if not isinstance(granularity, PerGroup):  # its scales belong to each sample, so that samples stay together
            torch.manual_seed(seed)
            cuts = torch.randint(0, 29, (5,)).sort().values
            order = list(torch.cat(order)[torch.randperm(28)].tensor_split(cuts))
        assert same(observe(name, scheme, order), expected)


def formats_of(grid: Grid) -> list[Scheme]:
    """Every width of the grid, signed and unsigned, with one scale and with one per channel."""
    found = []
    for bits, signed, granularity in product(range(1, 9), (True, False), (PerTensor(), PerChannel(1))):
        with suppress(SettingError):  # not all grids have all formats
            found.append(Scheme(bits=bits, signed=signed, grid=grid, granularity=granularity))
    return [scheme for scheme in found if len(scheme.levels) > 1]


@every_observer
@pytest.mark.parametrize("grid", get_args(Grid), ids=lambda grid: grid.__name__)
def test_every_grid_and_width_gets_a_sensible_range(name: str, grid: type[Grid]) -> None:
    """5 % of the power are lost at most, or little more than where nothing is clipped.

    But for logits, where something else counts than the power.
    """
    x = batches_of("normal", count=1)[0][:, ::2]
    for scheme in formats_of(grid()):
        wanted = x if scheme.signed else x.relu()
        q, everything = observe(name, scheme, [x], bins=256, steps=10, samples=32), observe("min_max", scheme, [x])
        assert q.scheme == scheme and q.scale.shape == scale_shape(tuple(x.shape), scheme.granularity), scheme
        low, high = q.range()
        assert bool((low < high).all()), scheme
        lost, most = (float((p.fake_quantize(x) - wanted).square().mean()) for p in (q, everything))
        power = float(wanted.square().mean())
        assert name == "cross_entropy" or lost <= max(1.5 * most, 0.05 * power), (scheme, lost / power, most / power)


EDGES = {
    "zeros": torch.zeros(3, 4),
    "constant": torch.full((3, 4), 5.0),
    "negative constant": torch.full((3, 4), -5.0),
    "one value": torch.full((1, 1), 0.7),
    "one outlier": torch.cat([torch.linspace(-1, 1, 9999), torch.tensor([1e6])]).reshape(-1, 4),
    "tiny": torch.linspace(-1, 2, 12).reshape(3, 4) * 1e-30,
    "subnormal": torch.linspace(-1, 2, 12).reshape(3, 4) * 1e-40,
    "huge": torch.linspace(-1, 2, 12).reshape(3, 4) * 1e30,
    "near the largest float32": torch.tensor([[1.6e38, -1.6e38]]),
    "tiny and huge": torch.tensor([[1e-38, 1e30, -1e-38]]),
}


@every_observer
@pytest.mark.parametrize("scheme", [*FEW, Scheme(bits=1), Scheme(bits=4, symmetric=False)], ids=str)
@pytest.mark.parametrize("x", EDGES.values(), ids=EDGES)
def test_parameters_respect_the_scheme(name: str, scheme: Scheme, x: Tensor) -> None:
    granularity = PerTensor() if scheme.bits > 4 else PerChannel(1)
    scheme = dataclasses.replace(scheme, granularity=granularity)
    q = observe(name, scheme, [x])
    assert q.scheme == scheme.resolve_sign(all_non_negative=bool((x >= 0).all()))
    assert q.scale.dtype == torch.float32 and q.zero_point.dtype == torch.int32
    assert q.scale.shape == q.zero_point.shape == scale_shape(tuple(x.shape), granularity)
    assert bool((torch.isfinite(q.scale) & (q.scale > 0)).all())
    assert bool(((q.zero_point >= q.scheme.quant_min) & (q.zero_point <= q.scheme.quant_max)).all())
    if scheme.symmetric:
        assert not bool(q.zero_point.any())
    if isinstance(scheme.scale, PowerOfTwo):
        assert torch.equal(torch.frexp(q.scale).mantissa, torch.full_like(q.scale, 0.5))


@every_observer
@pytest.mark.parametrize("value", [5.0, 1e-20, 1e20])
def test_a_constant_survives_8_bits(name: str, value: float) -> None:
    for scheme in (Scheme(), Scheme(signed=False), Scheme(signed=False, symmetric=False)):
        q = observe(name, scheme, [torch.full((3, 4), value)] * 2)
        assert abs(q.fake_quantize(torch.tensor(value)).item() - value) <= q.scale.item() / 2 * (1 + 1e-5)


@every_observer
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel(1)], ids=str)
def test_refuses_what_is_not_finite(name: str, bad: float, granularity: Granularity) -> None:
    observer = settings_of(name).build(Scheme(granularity=granularity))
    observer.see(torch.ones(2, 3))
    before = observer.qparams()
    with pytest.raises(CalibrationError, match="NaN" if math.isnan(bad) else "Inf"):
        observer.see(torch.tensor([[1.0, 2.0, bad], [1.0, 2.0, 3.0]]))
    assert same(observer.qparams(), before)


@every_observer
def test_refuses_to_answer_before_it_saw_data(name: str) -> None:
    observer = settings_of(name).build(Scheme())
    with pytest.raises(CalibrationError, match="observer that saw no data"):
        observer.qparams()
    observer.see(torch.empty(0, 6, 40))
    with pytest.raises(CalibrationError, match="observer that saw no data"):
        observer.qparams()


@every_observer
def test_refuses_another_number_of_scales(name: str) -> None:
    observer = settings_of(name).build(Scheme(granularity=PerChannel(1)))
    observer.see(torch.ones(2, 3))
    with pytest.raises(CalibrationError, match="scales"):
        observer.see(torch.ones(2, 4))


@pytest.mark.parametrize("name", [name for name in OBSERVERS if name != "cross_entropy"])
@pytest.mark.parametrize("granularity", [PerChannel(1), PerGroup(1, 3), PerGroup(-1, 20)], ids=str)
@pytest.mark.parametrize("scheme", [s for s in FEW if not s.adapt_sign], ids=str)
def test_each_scale_is_what_its_values_alone_would_give(name: str, granularity: Granularity, scheme: Scheme) -> None:
    batches = batches_of("normal", count=8)
    q = observe(name, dataclasses.replace(scheme, granularity=granularity), batches)
    flat = [(q.scale.flatten()[i], q.zero_point.flatten()[i]) for i in range(0, q.scale.numel(), 7)]
    for index, (scale, zero_point) in zip(range(0, q.scale.numel(), 7), flat, strict=True):
        alone = observe(name, scheme, [values_of(b, granularity, index) for b in batches], bins=512)
        assert alone.scale.item() == scale.item() and alone.zero_point.item() == zero_point.item()


def values_of(x: Tensor, granularity: Granularity, index: int) -> Tensor:
    """The values that belong to one scale, by its place in the flattened scale."""
    if isinstance(granularity, PerChannel):
        return x.select(granularity.axis, index)
    assert isinstance(granularity, PerGroup)
    shape = scale_shape(tuple(x.shape), granularity)
    place = [int(i) for i in torch.unravel_index(torch.tensor(index), shape)]
    first = place[granularity.axis] * granularity.size
    taken: list[Any] = list(place)
    taken[granularity.axis] = slice(first, first + granularity.size)
    return x[tuple(taken)]


@every_observer
@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel(1)], ids=str)
def test_memory_does_not_grow_with_the_data(name: str, granularity: Granularity) -> None:
    observer = settings_of(name).build(Scheme(granularity=granularity))
    sizes = []
    for seed in range(40):
        observer.see(torch.randn(16, 4, 100, generator=torch.Generator().manual_seed(seed)))
        sizes.append(state_bytes(observer))
    assert sizes[-1] == sizes[10] < 400_000


def state_bytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.untyped_storage().nbytes()
    if isinstance(value, (list, tuple)):
        return sum(state_bytes(v) for v in value)
    return sum(state_bytes(v) for v in vars(value).values()) if hasattr(value, "__dict__") else 0


@every_observer
def test_keeps_no_hold_on_its_input(name: str) -> None:
    """Neither its memory nor its graph."""
    x = torch.randn(4, 6, 40, generator=torch.Generator().manual_seed(0))
    mine = x.clone().requires_grad_()
    observer = settings_of(name).build(Scheme())
    observer.see(mine * 1)
    observer.see(reused := x.clone())
    reused.zero_()
    q = observer.qparams()
    assert not q.scale.requires_grad
    assert same(q, observe(name, Scheme(), [x, x]))


@every_observer
@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel(1)], ids=str)
def test_the_layout_in_memory_does_not_matter(name: str, granularity: Granularity) -> None:
    x = torch.randn(5, 6, 10, 10, generator=torch.Generator().manual_seed(0))
    scheme = Scheme(granularity=granularity)
    expected = observe(name, scheme, [x])
    wide = torch.zeros(5, 6, 10, 20)
    wide[..., ::2] = x
    for other in (x.to(memory_format=torch.channels_last), wide[..., ::2], x.double()):
        assert same(observe(name, scheme, [other]), expected)


@every_observer
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int32, torch.uint8])
def test_takes_every_dtype(name: str, dtype: torch.dtype) -> None:
    x = torch.arange(96).reshape(2, 48).to(dtype)
    assert same(observe(name, Scheme(), [x]), observe(name, Scheme(), [x.float()]))


@pytest.mark.parametrize("name", ["percentile", "histogram", "mse", "kl_divergence", "mean_std"])
@pytest.mark.parametrize("scheme", [s for s in FEW if s.bits < 8 and s.grid == Uniform()], ids=str)
def test_clips_one_outlier(name: str, scheme: Scheme) -> None:
    x = torch.cat([torch.linspace(0, 1, 30_000), torch.tensor([60.0])])
    assert observe(name, scheme, [x]).range()[1] < 0.6 * observe("min_max", scheme, [x]).range()[1] + 1e-6


def test_an_outlier_makes_neighbours_collide_in_min_max() -> None:
    scheme = Scheme(signed=False, symmetric=False)
    q = observe("min_max", scheme, [torch.tensor([0, 1, 1.05, 5])])
    assert round(q.scale.item(), 4) == 0.0196
    assert q.quantize(torch.tensor([0, 1, 1.05, 5])).tolist() == [0, 51, 54, 255]
    q = observe("min_max", scheme, [torch.tensor([0, 1, 1.05, 5, 50.0])])
    assert round(q.scale.item(), 3) == 0.196
    assert q.quantize(torch.tensor([1, 1.05])).tolist() == [5, 5]
