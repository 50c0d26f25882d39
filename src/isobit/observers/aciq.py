"""ACIQ: the best clipping value of a Gauss or Laplace distribution, in closed form (Banner et al. 2019)."""

import math
from dataclasses import dataclass
from functools import cache
from typing import Literal, final, get_args

import torch
from torch import Tensor

from isobit.core.errors import SettingError
from isobit.core.grid import Uniform
from isobit.core.qparams import QParams
from isobit.core.scheme import Scheme
from isobit.observers.range_error import has_free_ends
from isobit.observers.streaming_histogram import HistogramPart, StreamingHistogram

Distribution = Literal["gauss", "laplace"]

LIKELIER = math.sqrt(2 * math.e / math.pi)
"""σ / b below which a Gauss distribution is likelier than a Laplace one: where σ √(2πe) = 2 b e."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Aciq:
    """Settings of ACIQ: the distribution; `auto` takes for each scale the likelier one of the two.

    Its formulas are those of arXiv:1810.05723, section 3.

    >>> observer = Aciq(distribution="gauss").build(Scheme(bits=4))
    >>> observer.see(torch.randn(100_000, generator=torch.Generator().manual_seed(0)))
    >>> 2.3 < observer.qparams().scale.item() * 7 < 2.6
    True
    """

    distribution: Distribution | Literal["auto"] = "auto"
    bins: int | None = None

    def __post_init__(self) -> None:
        known = (*get_args(Distribution), "auto")
        if self.distribution not in known:
            raise SettingError(f"distribution has to be one of {', '.join(known)}, got {self.distribution!r}")

    def build(self, scheme: Scheme) -> "AciqObserver":
        """An observer that has seen nothing."""
        return AciqObserver(scheme, self)


def clipping_error(alpha: float, distribution: Distribution, *, step: float) -> float:
    """E (x - x̂)² of a distribution of unit σ (Gauss) or unit b (Laplace), clipped to [-alpha, alpha].

    What clipping costs (equations 4 and 9), and (step · alpha)² / 12 for rounding; the paper has step = 2 / 2^bits.

    Gauss: (1 + α²) (1 - erf(α / √2)) - √(2 / π) α e^(-α²/2); Laplace: 2 e^(-α).
    """
    noise = (step * alpha) ** 2 / 12
    if distribution == "laplace":
        return 2 * math.exp(-alpha) + noise
    tail = (1 + alpha**2) * math.erfc(alpha / math.sqrt(2))
    return tail - math.sqrt(2 / math.pi) * alpha * math.exp(-(alpha**2) / 2) + noise


@cache
def optimal_clip(distribution: Distribution, *, step: float) -> float:
    """The alpha of least `clipping_error`, in units of σ or b: the root of its derivative, which rises, by bisection.

    One side of 0 alone, as behind a ReLU, with 2^bits levels has the step 1 / 2^bits: the clip of one more bit.

    >>> round(optimal_clip("laplace", step=2 / 2**4), 2)
    5.03
    """
    low, high = 0.0, 64.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _slope(middle, distribution) + step**2 * middle / 6 < 0 else (low, middle)
    return (low + high) / 2


def _slope(alpha: float, distribution: Distribution) -> float:
    """The derivative of what clipping costs."""
    if distribution == "laplace":
        return -2 * math.exp(-alpha)
    edge = math.sqrt(2 / math.pi) * math.exp(-(alpha**2) / 2)
    return 2 * (alpha * math.erfc(alpha / math.sqrt(2)) - edge)


def step_of(scheme: Scheme, *, one_sided: bool) -> float:
    """The step of the scheme's levels as a share of alpha, where they reach from -alpha, or from 0, to alpha.

    2^bits - 1 steps instead of the paper's 2^bits: what the grid has. Uneven levels count as even ones.
    """
    steps = max(len(scheme.levels) - 1, 1)
    if has_free_ends(scheme):
        return (1 if one_sided else 2) / steps
    if not scheme.signed:
        return 1 / steps
    return 1 / max(scheme.quant_max, 1) if isinstance(scheme.grid, Uniform) else 2 / steps


def aciq_range(
    part: HistogramPart, scheme: Scheme, *, distribution: Distribution | Literal["auto"] = "auto"
) -> tuple[Tensor, Tensor]:
    """[c - α, c + α] inside what was seen, with α = σ · clip or b · clip; see `optimal_clip`.

    The centre c is the mean where the range has a zero point, else 0; b = E|x - c| and σ² = E(x - c)². Values on one
    side of 0 alone are the half of a distribution around 0, as those behind a ReLU: [0, α], and exact zeros,
    which cost nothing, don't count in b and σ. `auto` is the one of greater likelihood: Gauss for σ < b √(2e / π).
    """
    points, weights = part.points()
    x = points.double()
    if scheme.symmetric and not scheme.signed:
        x = x.clamp(min=0)
    one_sided = ((x >= 0) | (weights == 0)).all(1) | ((x <= 0) | (weights == 0)).all(1)
    mean = (weights * x).sum(1) / weights.sum(1)
    centre = torch.where(one_sided, 0.0, mean) if has_free_ends(scheme) else torch.zeros_like(mean)
    away = (x - centre[:, None]).abs()
    weights = weights * ((away > 0) | ~one_sided[:, None])
    count = weights.sum(1).clamp(min=1)
    b, sigma = (weights * away).sum(1) / count, ((weights * away.square()).sum(1) / count).sqrt()
    alpha = torch.where(
        sigma < b * LIKELIER if distribution == "auto" else torch.full_like(one_sided, distribution == "gauss"),
        sigma * _clips("gauss", scheme, one_sided),
        b * _clips("laplace", scheme, one_sided),
    )
    low, high = torch.maximum(part.low, centre - alpha), torch.minimum(part.high, centre + alpha)
    return low.where(~one_sided, low.clamp(max=0)), high.where(~one_sided, high.clamp(min=0))


def _clips(distribution: Distribution, scheme: Scheme, one_sided: Tensor) -> Tensor:
    half, full = (optimal_clip(distribution, step=step_of(scheme, one_sided=side)) for side in (True, False))
    return torch.where(one_sided, half, full).double()


@final
class AciqObserver:
    """The range of least expected (x - x̂)² if x has the distribution that its moments say; see `aciq_range`."""

    def __init__(self, scheme: Scheme, settings: Aciq) -> None:
        self._histogram = StreamingHistogram(scheme, bins=settings.bins)
        self._distribution = settings.distribution

    def see(self, x: Tensor) -> None:
        """Take in one batch. Raises CalibrationError where it holds NaN or Inf."""
        self._histogram.see(x)

    def qparams(self) -> QParams:
        """The parameters. Raises CalibrationError where nothing was seen."""
        return self._histogram.qparams_from(lambda part, s: aciq_range(part, s, distribution=self._distribution))
