"""Casts to 16-bit floats against numpy's own, bit by bit."""

import numpy as np
import pytest
import torch

from isobit.core.errors import SettingError
from isobit.core.fake_quantize import fake_quantize
from isobit.core.float16 import cast
from isobit.core.granularity import PerChannel
from isobit.core.grid import Float16
from isobit.core.qparams import qparams_of_range
from isobit.core.scheme import PowerOfTwo, Scheme
from isobit.observers import MinMax

HALF, FLUSHED = Float16(), Float16(subnormals=False)


def values() -> np.ndarray:
    """Every float16, the float32 in the middle of each two, its neighbours, and random float32 of all magnitudes."""
    every = np.arange(0, 0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    middles = (every[1:] + every[:-1]) / 2
    beside = [np.nextafter(middles, np.float32(end)) for end in (0, 1e9)]
    bits = np.random.default_rng(0).integers(0, 0x7F000000, 100_000, dtype=np.uint32)
    positive = np.concatenate([every, middles, *beside, bits.view(np.float32)]).astype(np.float32)
    return np.concatenate([positive, -positive])


def test_cast_is_numpy_s_but_for_infinity() -> None:
    x = values()
    with np.errstate(over="ignore"):
        expected = x.astype(np.float16).astype(np.float32)
    expected = np.where(np.isinf(expected), np.copysign(np.float32(65504), x), expected)
    np.testing.assert_array_equal(cast(torch.from_numpy(x), HALF).numpy(), expected)


def test_without_subnormals_what_rounds_below_the_smallest_normal_is_zero() -> None:
    x = values()
    with np.errstate(over="ignore"):
        rounded = np.clip(x, -65504, 65504).astype(np.float16)
    tiny = np.abs(rounded) < np.finfo(np.float16).smallest_normal
    expected = np.where(tiny, np.float32(0), rounded.astype(np.float32))
    found = cast(torch.from_numpy(x), FLUSHED).numpy()
    np.testing.assert_array_equal(found, expected)
    assert tiny.any() and not tiny.all()
    assert (cast(torch.from_numpy(x), HALF).numpy() != found).any()


def test_nan_stays_and_infinity_becomes_the_largest() -> None:
    x = torch.tensor([float("nan"), float("inf"), float("-inf")])
    for grid in (HALF, FLUSHED):
        y = cast(x, grid)
        assert y[0].isnan() and y[1:].tolist() == [65504.0, -65504.0]


def test_gradient_is_straight_through_up_to_the_largest() -> None:
    x = torch.tensor([0.3, -7e4, 65504.0, 1e5], dtype=torch.float64, requires_grad=True)
    y = fake_quantize(x, torch.ones(()), torch.zeros(()), Scheme(bits=16, grid=HALF))
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [1.0, 0.0, 1.0, 0.0]


def test_its_integers_are_its_bits() -> None:
    scheme = Scheme(bits=16, grid=HALF)
    grid = qparams_of_range(torch.tensor(-3.0), torch.tensor(900.0), scheme)
    x = torch.randn(1000) * 100
    assert np.array_equal(grid.quantize(x).numpy().astype(np.int16), x.numpy().astype(np.float16).view(np.int16))
    assert torch.equal(grid.dequantize(grid.quantize(x)), grid.fake_quantize(x))
    assert [float(end) for end in grid.range()] == [-65504.0, 65504.0]
    assert float(grid.scale) == 1.0


def test_min_max_says_what_is_clipped() -> None:
    observer = MinMax().build(Scheme(bits=16, grid=HALF))
    observer.see(torch.tensor([1.0, -65504.0]))
    assert observer.choice() == ""
    observer.see(torch.tensor([1e6]))
    assert "1e+06" in observer.choice() and "65504" in observer.choice()
    integers = MinMax().build(Scheme())
    integers.see(torch.tensor([1e6]))
    assert integers.choice() == ""


@pytest.mark.parametrize(
    "other",
    [{"bits": 8}, {"signed": False}, {"granularity": PerChannel(0)}, {"scale": PowerOfTwo()}, {"symmetric": False}],
)
def test_what_a_float_does_not_have(other: dict[str, object]) -> None:
    with pytest.raises(SettingError):
        Scheme(**{"bits": 16, "grid": HALF, **other})


def test_no_integer_levels() -> None:
    scheme = Scheme(bits=16, grid=HALF)
    assert (str(scheme), str(Scheme(bits=16, grid=FLUSHED))) == ("float16", "float16 without subnormals")
    with pytest.raises(SettingError, match="cast"):
        _ = scheme.levels
