import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from isobit.core.arithmetic import FixedPoint, FloatMultiplier, Shift
from isobit.core.errors import UnsupportedError
from isobit.integer.requantize import fixed_point, multiplier, quantize, requantize, shift, wrap32
from isobit.integer.values import Format

U8 = Format(np.float32(0.1), 3, 0, 255)
accumulators = st.integers(-(2**31), 2**31 - 1)
multipliers = st.floats(2.0**-20, 0.999, exclude_max=True)


def gemmlowp(acc: int, factor: float) -> int:
    """The published C code, in Python's unbounded integers: C's `/` truncates, its `>>` floors."""
    mantissa, exponent = np.frexp(factor)
    m = round(float(mantissa) * 2**31)
    if m == 2**31:
        m, exponent = m // 2, exponent + 1
    product = acc * 2 ** max(int(exponent), 0) * m
    nudged = product + (2**30 if product >= 0 else 1 - 2**30)
    high = abs(nudged) // 2**31 * (1 if nudged >= 0 else -1)
    right = max(-int(exponent), 0)
    mask = 2**right - 1
    return (high >> right) + ((high & mask) > (mask >> 1) + (high < 0))


@given(accumulators, multipliers)
def test_double_rounding_is_gemmlowps(acc: int, factor: float) -> None:
    found = fixed_point(torch.tensor([acc]), torch.tensor(factor, dtype=torch.float64), double_rounding=True)
    assert found.item() == gemmlowp(acc, factor)


@given(accumulators, multipliers)
def test_single_rounding_is_half_up_of_the_exact_product(acc: int, factor: float) -> None:
    mantissa, exponent = np.frexp(factor)
    m = round(float(mantissa) * 2**31)
    down = 31 - int(exponent)
    found = fixed_point(torch.tensor([acc]), torch.tensor(factor, dtype=torch.float64), double_rounding=False)
    assert found.item() == (2 * acc * m + 2**down) // 2 ** (down + 1)


@given(accumulators, st.integers(-12, 24))
def test_shift(acc: int, k: int) -> None:
    factor = torch.tensor(2.0**-k, dtype=torch.float64)
    up = shift(torch.tensor([acc]), factor, half_even=False).item()
    even = shift(torch.tensor([acc]), factor, half_even=True).item()
    assert up == ((acc + (1 << (k - 1))) >> k if k > 0 else acc << -k)
    assert even == round(acc / 2**k)


@given(accumulators, st.floats(2.0**-14, 2.0**-2, width=32))
def test_float_multiplier(acc: int, factor: float) -> None:
    """One product of two float32, ties to even."""
    for kind in (torch.int64, torch.float64):
        found = requantize(torch.tensor([acc]).to(kind), torch.tensor(factor), FloatMultiplier(), U8)
        exact = np.rint(np.float32(acc) * np.float32(factor)) + 3
        assert found.item() == np.clip(exact, 0, 255)


def test_multipliers_are_rounded_as_the_engine_does() -> None:
    sx, sw, sy = np.float32(0.1), np.array([0.3, 0.007], np.float32), np.float32(0.7)
    found = multiplier(FloatMultiplier(), sx, sw, sy)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.float32(np.float32(sx * sw) / sy))
    wide = multiplier(FixedPoint(), sx, sw, sy)
    np.testing.assert_array_equal(wide, np.float64(sx) * sw.astype(np.float64) / np.float64(sy))


def test_quantize_divides_and_clips() -> None:
    x = torch.tensor([0.05, 0.15, 0.25, -9.0, 99.0, float("nan"), float("inf"), -float("inf")])
    expected = np.clip(np.rint(x[:5].numpy() / np.float32(0.1)) + 3, 0, 255).tolist()
    assert quantize(x, U8).tolist() == [*expected, 0, 255, 0]


def test_scales_that_are_no_powers_of_two_cannot_be_shifted() -> None:
    with pytest.raises(UnsupportedError, match="powers of two"):
        requantize(torch.tensor([1]), torch.tensor(0.3), Shift(), U8)


@given(st.integers(-(2**40), 2**40))
def test_wrap32(acc: int) -> None:
    assert wrap32(torch.tensor([acc])).item() == np.array([acc]).astype(np.int32)[0]
