"""Bits per channel against all allocations there are, and against quantizing with them."""

from itertools import product

import numpy as np
import pytest
import torch

from isobit.analysis.bit_allocation import allocate_bits, bits_of, expected_error
from isobit.core.errors import SettingError
from isobit.core.scheme import Scheme
from isobit.observers import Mse


@pytest.mark.parametrize("spread", [[1.0, 1.0, 1.0, 1.0], [1.0, 2.0, 4.0, 16.0], [0.01, 1.0, 1.3, 40.0]])
def test_near_the_best_of_all_allocations(spread: list[float]) -> None:
    """At most half again as much error as the best of the 9^4 that need no more bits."""
    found = bits_of(spread, bits=4)
    assert sum(found) <= 16
    every = [list(bits) for bits in product(range(9), repeat=4) if sum(bits) <= 16]
    best = min(expected_error(spread, bits, "gauss") for bits in every)
    assert expected_error(spread, found, "gauss") <= 1.5 * best


def test_two_thirds_of_the_exponent() -> None:
    """Channels 8 times as wide get log2(8) · 2/3 = 2 bits more."""
    assert bits_of([1.0, 8.0, 64.0], bits=4) == [2, 4, 6]


@pytest.mark.parametrize("distribution", ["gauss", "laplace"])
def test_the_gain_is_what_quantizing_finds(distribution: str) -> None:
    generator = np.random.default_rng(1)
    draw = generator.normal if distribution == "gauss" else generator.laplace
    spread = np.repeat([0.2, 1.0, 2.0, 9.0], 4)
    weight = torch.from_numpy(draw(size=(16, 20_000)) * spread[:, None]).float()
    found = allocate_bits(weight, bits=4)
    assert found.distribution == distribution
    assert found.mean_bits <= 4

    def error(bits: tuple[int, ...]) -> float:
        errors = []
        for row, width in zip(weight, bits, strict=True):
            observer = Mse().build(Scheme(bits=width, symmetric=False))
            observer.see(row)
            errors.append(float((observer.qparams().fake_quantize(row) - row).square().mean()))
        return float(np.mean(errors))

    gain = 10 * np.log10(error((4,) * 16) / error(found.bits))
    assert gain > 2
    assert gain == pytest.approx(found.gain_db, abs=0.7)


def test_channels_that_are_alike_or_empty() -> None:
    weight = torch.randn(8, 5000, generator=torch.Generator().manual_seed(0))
    assert allocate_bits(weight, bits=3).bits == (3,) * 8
    assert allocate_bits(torch.zeros(2, 5), bits=3).gain_db == 0
    weight[:4] = 0
    assert allocate_bits(weight, bits=3).bits == (0,) * 4 + (6,) * 4
    assert allocate_bits(weight.T, bits=3, axis=1).bits == (0,) * 4 + (6,) * 4


@pytest.mark.parametrize("bits", [0, 9])
def test_refuses_other_widths(bits: int) -> None:
    with pytest.raises(SettingError, match="bits has to be a whole number from 1 to 8"):
        allocate_bits(torch.ones(2, 2), bits=bits)
