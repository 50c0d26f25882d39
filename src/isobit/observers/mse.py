"""MSE, or OMSE: the range of least quantization error, by search (Choukroun et al. 2019, arXiv:1902.06822)."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from isobit.core.errors import SettingError
from isobit.core.qparams import QParams
from isobit.core.scheme import PowerOfTwo, Scheme
from isobit.observers.range_error import best_range, has_free_ends, quantization_error
from isobit.observers.streaming_histogram import HistogramPart, StreamingHistogram

NEXT_POWER = 1.42
"""A little more than √2: with this factor the nearest power of two is never below what the range asks for."""

COARSE = 4
"""Every how many candidates the search looks first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mse:
    """Settings of the search: `power` is the p of the p-norm (2; BRECQ and LAPQ use 2.4), `steps` the candidates.

    >>> observer = Mse().build(Scheme(bits=4))
    >>> observer.see(torch.cat([torch.linspace(-1, 1, 1000), torch.tensor([3.0])]))
    >>> bool(observer.qparams().scale * 7 < 1.5)
    True
    """

    power: float = 2.0
    steps: int = 100
    bins: int | None = None

    def __post_init__(self) -> None:
        if not self.power > 0:
            raise SettingError(f"power has to be above 0, got {self.power!r}")
        if self.steps < 2:
            raise SettingError(f"steps has to be at least 2, got {self.steps!r}")

    def build(self, scheme: Scheme) -> "MseObserver":
        """An observer that has seen nothing."""
        return MseObserver(scheme, self)


def mse_range(part: HistogramPart, scheme: Scheme, *, power: float, steps: int) -> tuple[Tensor, Tensor]:
    """argmin over the factors f of Σ |x - x̂|^power, with the range f · [low, high].

    f = 1, 1 - 1/steps, …, 1/steps (√2 too for powers of two: the nearest may clip as much), then halves down
    to one bin, for the sake of lone outliers; every fourth is tried, then the ones beside the best. A range with a zero
    point, or a codebook, is then shrunk at one end at a time, twice.
    """
    points, weights = part.points()
    factors = torch.arange(steps, 0, -1, device=points.device, dtype=torch.float64) / steps
    halves = 0.5 ** torch.arange(1, 12, device=points.device, dtype=torch.float64) / steps
    wider = factors.new_full((int(isinstance(scheme.scale, PowerOfTwo)),), NEXT_POWER)
    factors = torch.cat([wider, factors, halves])[None, :]
    lows, highs = part.low.clamp(max=0)[:, None] * factors, part.high.clamp(min=0)[:, None] * factors

    def best(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        many = max(low.shape[1], high.shape[1])
        low, high = low.expand(-1, many), high.expand(-1, many)
        some = torch.arange(0, many, COARSE, device=low.device).expand(len(low), -1)
        for near in (torch.zeros_like(some[:1, :1]), torch.arange(1 - COARSE, COARSE, device=low.device)):
            some = (some + near).clamp(0, many - 1)
            errors = quantization_error(points, weights, low.gather(1, some), high.gather(1, some), scheme, power=power)
            some = best_range(errors, some, some)[0][:, None]
        return low.gather(1, some), high.gather(1, some)

    low, high = best(lows, highs)
    if has_free_ends(scheme):
        for _ in range(2):
            low, high = best(low, torch.cat([high, highs], dim=1))
            low, high = best(torch.cat([low, lows], dim=1), high)
    return low.squeeze(1), high.squeeze(1)


@final
class MseObserver:
    """The range of least Σ |x - x̂|^power over all values seen; see `mse_range`."""

    def __init__(self, scheme: Scheme, settings: Mse) -> None:
        self._histogram = StreamingHistogram(scheme, bins=settings.bins)
        self._settings = settings

    def see(self, x: Tensor) -> None:
        """Take in one batch. Raises CalibrationError where it holds NaN or Inf."""
        self._histogram.see(x)

    def qparams(self) -> QParams:
        """The parameters. Raises CalibrationError where nothing was seen."""
        power, steps = self._settings.power, self._settings.steps
        return self._histogram.qparams_from(lambda part, s: mse_range(part, s, power=power, steps=steps))
