"""Drawn images have what they promise: values, radii, and a spectrum that numpy measures."""

import numpy as np
import pytest
import torch

from isobit.algorithms.input_range import from_unit
from isobit.algorithms.synthetic_images import SMALLEST, _radii, dead_leaves, pink_noise


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("draw", [dead_leaves, pink_noise])
@pytest.mark.parametrize("size", [(3, 32, 32), (1, 17, 40), (4, 8, 8)])
def test_values_and_shapes(draw: object, size: tuple[int, int, int]) -> None:
    x = draw(6, size, generator=generator())  # type: ignore[operator]
    assert x.shape == (6, *size)
    assert 0 <= float(x.min()) < float(x.max()) <= 1
    assert torch.equal(x, draw(6, size, generator=generator()))  # type: ignore[operator]
    assert not torch.equal(x, draw(6, size, generator=generator(1)))  # type: ignore[operator]


def test_radii_have_the_density_of_the_paper() -> None:
    """P(radius < r) = (a⁻² - r⁻²) / (a⁻² - b⁻²), by the quantiles."""
    radii = np.sort(_radii(torch.rand(200_000, generator=generator())).double().numpy())
    a, b = SMALLEST, 0.5
    for share in (0.1, 0.5, 0.9, 0.99):
        r = radii[int(share * len(radii))]
        assert (a**-2 - r**-2) / (a**-2 - b**-2) == pytest.approx(share, abs=5e-3)


def slope(images: torch.Tensor) -> float:
    """The exponent a of the mean amplitude 1 / f^a, fitted by numpy."""
    x = images.mean(1).double().numpy()
    x = x - x.mean((1, 2), keepdims=True)
    window = np.hanning(x.shape[1])[:, None] * np.hanning(x.shape[2])[None]
    power = (np.abs(np.fft.fft2(x * window)) ** 2).mean(0)
    f = np.hypot(np.fft.fftfreq(x.shape[1])[:, None], np.fft.fftfreq(x.shape[2])[None])
    keep = (f > 0.05) & (f < 0.35)
    return float(-np.polyfit(np.log(f[keep]), np.log(power[keep]) / 2, 1)[0])


def test_the_spectrum_is_that_of_natural_images() -> None:
    """Their amplitude falls as 1 / f; that of white noise, by the same measure, does not fall."""
    assert 0.7 < slope(dead_leaves(32, (3, 64, 64), generator=generator())) < 1.6
    assert 0.5 < slope(pink_noise(32, (3, 64, 64), generator=generator())) < 2.0
    assert abs(slope(torch.rand(32, 3, 64, 64, generator=generator()))) < 0.1


def test_the_range_of_the_network() -> None:
    x = torch.rand(4, 3, 5, 5, generator=generator())
    standard = from_unit(x, None)
    assert float(standard.mean()) == pytest.approx(0, abs=1e-5)
    assert float(standard.std(correction=0)) == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(from_unit(x, (-1, 1)), 2 * x - 1)
    per_channel = from_unit(x, ((0.0, -1.0, 2.0), (1.0, 1.0, 6.0)))
    torch.testing.assert_close(per_channel[:, 2], 4 * x[:, 2] + 2)
    torch.testing.assert_close(per_channel[:, 0], x[:, 0])
