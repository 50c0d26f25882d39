"""Integers of 16 bits: sums and multipliers against Python's own integers, which know no width."""

from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from isobit.core.arithmetic import WIDE_FIXED_POINT, WIDE_SHIFT
from isobit.core.errors import UnsupportedError
from isobit.integer import ops
from isobit.integer.accumulate import accumulate, accumulate_pair
from isobit.integer.requantize import requantize, wide_fixed_point
from isobit.integer.values import Format, Quantized

GENERATOR = torch.Generator().manual_seed(0)
U16 = Format(np.float32(2.0**-13), 30_000, 0, 65_535)


def levels(*shape: int, low: int = 0, high: int = 65_536) -> torch.Tensor:
    return torch.randint(low, high, shape, generator=GENERATOR)


def test_sums_of_16_bit_products_are_exact_in_64_bits() -> None:
    x, w = levels(2, 3, 9, 9), levels(4, 3, 3, 3, low=-32_768, high=32_768)
    bias = levels(4, low=-(2**40), high=2**40)
    found = accumulate(
        x.float(), w.numpy(), bias.reshape(-1, 1, 1), largest=65_535, reduce=(1, 2, 3), product=F.conv2d, bits=64
    )
    patches = F.unfold(x.double(), 3).to(torch.int64)  # whole numbers below 2^53
    expected = torch.einsum("ok,nkp->nop", w.reshape(4, -1), patches) + bias.reshape(-1, 1)
    assert torch.equal(found.to(torch.int64).reshape(2, 4, -1), expected)
    assert int(expected.abs().max()) > 2**32
    wrapped = accumulate(x.float(), w.numpy(), None, largest=65_535, reduce=(1, 2, 3), product=F.conv2d)
    assert int(wrapped.abs().max()) < 2**31


def test_products_of_activations_are_exact_in_64_bits() -> None:
    a, b = levels(5, 64), levels(64, 7)
    found = accumulate_pair(a.float(), b.float(), largest=(65_535, 65_535), bits=64)
    assert torch.equal(found.to(torch.int64), a @ b)


def test_sums_that_no_float_holds_are_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"2\^53"):
        accumulate(
            torch.zeros(1, 1), np.full((1, 1), 2**40), None, largest=65_535, reduce=(0,), product=torch.matmul, bits=64
        )


@pytest.mark.parametrize("factor", [3e-9, 1.7e-6, 0.123, 0.5, 0.99999])
def test_the_multiplier_of_15_bits(factor: float) -> None:
    """(acc · m + half) >> shift with m = round(factor · 2^shift) of 15 bits, in Python's integers."""
    acc = levels(1000, low=-(2**46), high=2**46)
    found = wide_fixed_point(acc.double(), torch.tensor(factor, dtype=torch.float64))
    exponent = np.frexp(factor)[1]
    shift = 15 - int(exponent)
    m = min(int(np.floor(np.ldexp(np.frexp(factor)[0], 15) + 0.5)), 2**15 - 1)
    assert found.tolist() == [(int(a) * m + (1 << (shift - 1))) >> shift for a in acc]
    exact = [Fraction(int(a)) * Fraction(factor) for a in acc]
    assert all(abs(f - e) <= Fraction(1, 2) + abs(e) / 2**14 for f, e in zip(found.tolist(), exact, strict=True))


def test_an_accumulator_that_the_multiplier_does_not_take() -> None:
    with pytest.raises(UnsupportedError, match=r"2\^47"):
        wide_fixed_point(torch.tensor([2.0**47]), torch.tensor(0.5))


def test_shifts_of_64_bits() -> None:
    acc = levels(1000, low=-(2**40), high=2**40)
    found = requantize(acc.double(), torch.tensor(2.0**-26), WIDE_SHIFT.requantize, U16)
    expected = [min(max(((int(a) + (1 << 25)) >> 26) + 30_000, 0), 65_535) for a in acc]
    assert found.tolist() == expected


@pytest.mark.parametrize("arithmetic", [WIDE_FIXED_POINT, WIDE_SHIFT])
def test_additions_within_a_step(arithmetic: object) -> None:
    a = Quantized(levels(1000).float(), U16)
    b = Quantized(levels(1000).float(), Format(np.float32(2.0**-12), 100, 0, 65_535))
    output = Format(np.float32(2.0**-11), 20_000, 0, 65_535)
    found = ops.add(a, b, output, arithmetic)  # type: ignore[arg-type]
    real = (a.centred.double() * 2.0**-13 + b.centred.double() * 2.0**-12) / 2.0**-11 + 20_000
    assert float((found.double() - real.clamp(0, 65_535)).abs().max()) <= 0.5 + 1e-3
