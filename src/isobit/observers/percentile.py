"""Percentile: clip the rarest values on both sides."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from isobit.core.errors import SettingError
from isobit.core.qparams import QParams
from isobit.core.scheme import Scheme
from isobit.observers.streaming_histogram import HistogramPart, StreamingHistogram


@dataclass(frozen=True, kw_only=True, slots=True)
class Percentile:
    """Settings of the percentile observer: how many percent of the values the range keeps, above 0 to 100.

    >>> observer = Percentile(percentile=90.0).build(Scheme(bits=8, signed=False))
    >>> observer.see(torch.arange(101.0))
    >>> round(observer.qparams().scale.item() * 255, 4)
    90.0
    """

    percentile: float = 99.99
    bins: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.percentile <= 100:
            raise SettingError(f"percentile has to be above 0 and at most 100, got {self.percentile!r}")

    def build(self, scheme: Scheme) -> "PercentileObserver":
        """An observer that has seen nothing."""
        return PercentileObserver(scheme, percentile=self.percentile, bins=self.bins)


def percentile_range(part: HistogramPart, scheme: Scheme, *, percentile: float) -> tuple[Tensor, Tensor]:
    """With p = percentile / 100 and Q the quantile function (linear between neighbours, as numpy's):

    symmetric and signed [-t, t], t = Q(p) of |x|; symmetric and unsigned [0, t], t = Q(p) of max(x, 0);
    asymmetric [Q((1 - p) / 2), Q((1 + p) / 2)].
    """
    points, weights = part.points()
    share = percentile / 100
    if not scheme.symmetric:
        return weighted_quantile(points, weights, (1 - share) / 2), weighted_quantile(points, weights, (1 + share) / 2)
    if not scheme.signed:
        high = weighted_quantile(points.clamp(min=0), weights, share)
        return torch.zeros_like(high), high
    points, order = points.abs().sort(dim=1)
    high = weighted_quantile(points, weights.gather(1, order), share)
    return -high, high


def weighted_quantile(points: Tensor, weights: Tensor, share: float) -> Tensor:
    """The quantile of each row, (rows,), of ascending points that stand for a whole number of values each."""
    below = weights.cumsum(1)
    rank = (below[:, -1:] - 1) * share
    sides = torch.cat([rank.floor(), torch.minimum(rank.floor() + 1, below[:, -1:] - 1)], dim=1)
    index = torch.searchsorted(below, sides, right=True).clamp(max=points.shape[1] - 1)
    left, right = points.double().gather(1, index).unbind(1)
    return torch.lerp(left, right, (rank - rank.floor()).squeeze(1))


@final
class PercentileObserver:
    """The range that keeps `percentile` percent of all values; see `percentile_range`."""

    def __init__(self, scheme: Scheme, *, percentile: float, bins: int | None) -> None:
        self._histogram = StreamingHistogram(scheme, bins=bins)
        self._percentile = percentile

    def see(self, x: Tensor) -> None:
        """Take in one batch. Raises CalibrationError where it holds NaN or Inf."""
        self._histogram.see(x)

    def qparams(self) -> QParams:
        """The parameters. Raises CalibrationError where nothing was seen."""
        return self._histogram.qparams_from(lambda part, s: percentile_range(part, s, percentile=self._percentile))
