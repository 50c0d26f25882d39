import math

import numpy as np
import pytest
import torch

from isobit.analysis.noise import Noise
from isobit.core.qparams import QParams
from isobit.core.scheme import Scheme


def of(x: torch.Tensor, x_hat: torch.Tensor) -> Noise:
    noise = Noise()
    noise.add(x, x_hat)
    return noise


@pytest.mark.parametrize("bits", [2, 4, 6, 8, 10])
def test_uniform_values_gain_6_db_per_bit(bits: int) -> None:
    """Signal 1/3 and noise Δ²/12 with Δ = 2 / 2^b give 10 log10(2^2b) = 6.02 b dB."""
    step = 2.0 / 2**bits
    x = torch.linspace(-1.0, 1.0, 200_003, dtype=torch.float64)[1:-1]
    x_hat = (torch.floor(x / step) + 0.5) * step
    assert of(x, x_hat).sqnr_db == pytest.approx(20 * bits * math.log10(2), abs=0.01)


@pytest.mark.parametrize("bits", [10, 12])
def test_a_sine_gains_6_db_per_bit_and_1_76(bits: int) -> None:
    """The signal A²/2 of a sine and the noise Δ²/12, with Δ = 1 and A over all levels (Bennett 1948)."""
    grid = QParams(torch.tensor(1.0), torch.tensor(0), Scheme(bits=bits, narrow=True))
    amplitude = grid.scheme.quant_max + 0.5
    x = amplitude * torch.sin(torch.linspace(0.0, 1000.0, 1_000_003, dtype=torch.float64))
    assert amplitude * 2 == 2**bits - 1
    expected = 20 * math.log10(2**bits - 1) + 1.76
    assert of(x, grid.fake_quantize(x)).sqnr_db == pytest.approx(expected, abs=0.1)


def test_sums_over_batches_equal_numpy_on_the_whole() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(7, 50_000)).astype(np.float32)
    x_hat = (x + rng.normal(size=x.shape) * 0.01).astype(np.float32)
    noise = Noise()
    for a, b in zip(x, x_hat, strict=True):
        noise.add(torch.from_numpy(a), torch.from_numpy(b))
    a, b = x.astype(np.float64).ravel(), x_hat.astype(np.float64).ravel()
    assert noise.count == a.size
    assert noise.mse == pytest.approx(((a - b) ** 2).mean(), rel=1e-12)
    assert noise.sqnr_db == pytest.approx(10 * np.log10((a**2).sum() / ((a - b) ** 2).sum()), rel=1e-12)
    assert noise.cosine == pytest.approx(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)), rel=1e-12)


def test_float64_sums_see_what_float32_would_lose() -> None:
    """4 million noises of 1e-4 beside a signal of 1e4: float32 would lose each of them beside a square of 1e8."""
    x = torch.full((4_000_000,), 1e4)
    x_hat = x.double() + 1e-4
    assert of(x.double(), x_hat).mse == pytest.approx(1e-8, rel=1e-6)


def test_the_ends() -> None:
    x, zero = torch.tensor([1.0, -2.0]), torch.zeros(2)
    assert (of(x, x).sqnr_db, of(x, x).cosine) == (math.inf, 1.0)
    assert (of(zero, zero).sqnr_db, of(zero, zero).cosine) == (math.inf, 1.0)
    assert (of(zero, x).sqnr_db, of(zero, x).cosine) == (-math.inf, 0.0)
    assert (of(x, zero).sqnr_db, of(x, zero).cosine) == (0.0, 0.0)
    assert of(x, -x).cosine == pytest.approx(-1.0)
    assert Noise().mse == 0.0
    with pytest.raises(ValueError, match=r"\(2,\)"):
        of(x, torch.zeros(3))
