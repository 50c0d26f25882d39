"""ACIQ: the paper's table, its closed form against numerical integrals, and samples of the distributions it assumes."""

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.optimize import minimize_scalar
from scipy.stats import laplace, norm

from isobit.core.errors import SettingError
from isobit.core.granularity import PerChannel
from isobit.core.scheme import Scheme
from isobit.observers import Aciq, Mse
from isobit.observers.aciq import Distribution, clipping_error, optimal_clip

GAUSS = (1.24, 1.71, 2.15, 2.559, 2.936, 3.287, 3.615, 3.924)
LAPLACE = (1.863, 2.83, 3.897, 5.028, 6.205, 7.413, 8.645, 9.897)
"""Banner et al., the clips at 1 to 8 bits in units of σ and of b."""

SHAPES = {"gauss": norm, "laplace": laplace}


@pytest.mark.parametrize(("distribution", "table"), [("gauss", GAUSS), ("laplace", LAPLACE)])
def test_the_clips_are_the_papers(distribution: Distribution, table: tuple[float, ...]) -> None:
    found = [optimal_clip(distribution, step=2 / 2**bits) for bits in range(1, 9)]
    np.testing.assert_allclose(found, table, rtol=5e-3)


def test_one_side_alone_has_one_more_bit() -> None:
    """The paper's values for 8 bits behind a ReLU."""
    assert optimal_clip("gauss", step=1 / 2**8) == pytest.approx(4.216, rel=1e-3)
    assert optimal_clip("laplace", step=1 / 2**8) == pytest.approx(11.163, rel=1e-3)


@pytest.mark.parametrize("distribution", SHAPES)
@pytest.mark.parametrize("step", [1.0, 0.25, 2 / 255])
def test_the_error_is_the_integral_and_the_clip_its_minimum(distribution: Distribution, step: float) -> None:
    density = SHAPES[distribution].pdf

    def error(alpha: float) -> float:
        tail = 2 * quad(lambda x: (x - alpha) ** 2 * density(x), alpha, alpha + 60, points=[alpha + 2, alpha + 8])[0]
        return float(tail + (step * alpha) ** 2 / 12)

    for alpha in (0.1, 1.0, 3.3):
        assert clipping_error(alpha, distribution, step=step) == pytest.approx(error(alpha), rel=1e-6)
    best = minimize_scalar(error, bounds=(0.1, 30), method="bounded", options={"xatol": 1e-9}).x
    assert optimal_clip(distribution, step=step) == pytest.approx(best, rel=1e-3)


def drawn(distribution: str, count: int = 200_000) -> torch.Tensor:
    generator = np.random.default_rng(0)
    x = generator.normal(size=count) if distribution == "gauss" else generator.laplace(size=count)
    return torch.from_numpy(x).float()


@pytest.mark.parametrize("distribution", SHAPES)
def test_auto_recognizes_the_distribution(distribution: Distribution) -> None:
    for x in (drawn(distribution), drawn(distribution).relu()):
        for scheme in (Scheme(bits=4), Scheme(bits=4, signed=False, symmetric=False)):
            scales = {}
            for name in ("gauss", "laplace", "auto"):
                observer = Aciq(distribution=name).build(scheme)
                observer.see(x)
                scales[name] = observer.qparams().scale.item()
            assert scales["auto"] == scales[distribution]
            assert scales["gauss"] != scales["laplace"]


@pytest.mark.parametrize(
    ("distribution", "behind"),
    [("gauss", "nothing"), ("gauss", "relu"), ("laplace", "nothing"), ("laplace", "relu"), ("laplace", "shifted relu")],
)
@pytest.mark.parametrize("bits", [3, 4, 6])
def test_as_good_as_the_search_on_samples(distribution: str, behind: str, bits: int) -> None:
    """No search finds a much better range where the values have the distribution; an exponential forgets a shift."""
    x = drawn(distribution)
    x = x if behind == "nothing" else (x - 0.5 * ("shifted" in behind)).relu()
    scheme = Scheme(bits=bits, signed=behind == "nothing", symmetric=False)
    errors = []
    for settings in (Aciq(), Mse()):
        observer = settings.build(scheme)
        observer.see(x)
        errors.append(float((observer.qparams().fake_quantize(x) - x).square().mean()))
    assert errors[0] <= 1.12 * errors[1]


def test_each_channel_has_its_distribution() -> None:
    """Gauss and Laplace side by side, at scales 1 and 8, with the clips of 15 steps over 2 α."""
    x = torch.stack([drawn("gauss"), 8 * drawn("laplace")])
    observer = Aciq().build(Scheme(bits=4, symmetric=False, granularity=PerChannel(0)))
    observer.see(x)
    low, high = observer.qparams().range()
    reach = ((high - low) / 2).tolist()
    assert reach[0] == pytest.approx(optimal_clip("gauss", step=2 / 15), rel=0.02)
    assert reach[1] == pytest.approx(8 * optimal_clip("laplace", step=2 / 15), rel=0.02)


def test_refuses_another_distribution() -> None:
    with pytest.raises(SettingError, match="distribution has to be one of gauss, laplace, auto, got 'cauchy'"):
        Aciq(distribution="cauchy")  # type: ignore[arg-type]
