"""Mean ± k standard deviations."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from isobit.core.errors import SettingError
from isobit.core.qparams import QParams
from isobit.core.scheme import Scheme
from isobit.observers.seen_range import SeenRange, in_float64


@dataclass(frozen=True, kw_only=True, slots=True)
class MeanStd:
    """Settings of mean ± k·std: `deviations` is k.

    >>> observer = MeanStd(deviations=1.0).build(Scheme(bits=8, signed=False))
    >>> observer.see(torch.tensor([1.0, 3.0] * 100 + [2.0, 2.0]))
    >>> round(observer.qparams().scale.item() * 255, 2)
    3.0
    """

    deviations: float = 3.0

    def __post_init__(self) -> None:
        if not self.deviations > 0:
            raise SettingError(f"deviations has to be above 0, got {self.deviations!r}")

    def build(self, scheme: Scheme) -> "MeanStdObserver":
        """An observer that has seen nothing."""
        return MeanStdObserver(scheme, deviations=self.deviations)


@final
class MeanStdObserver:
    """[max(low, μ - k σ), min(high, μ + k σ)]: inside what was seen, so that it only ever clips.

    σ² = Σ (x - μ)² / n. Batches merge in float64 by the formula of Chan, Golub and LeVeque (1979), with n = n_a + n_b
    and δ = μ_b - μ_a: μ = μ_a + δ n_b / n, M = M_a + M_b + δ² n_a n_b / n. Their order moves the last bits of
    a float64; the scale is float32.
    """

    def __init__(self, scheme: Scheme, *, deviations: float) -> None:
        self._seen = SeenRange(scheme)
        self._deviations = deviations
        self._mean = self._squares = torch.zeros(1, dtype=torch.float64)

    def see(self, x: Tensor) -> None:
        """Take in one batch. Raises CalibrationError where it holds NaN or Inf."""
        before = self._seen.count
        rows = self._seen.see(x)
        if rows is None:
            return
        for values in in_float64(rows):
            added = values.shape[1]
            mean = values.mean(1)
            squares = (values - mean[:, None]).square_().sum(1)
            if not before:
                self._mean, self._squares, before = mean, squares, added
                continue
            total = before + added
            delta = mean - self._mean
            self._mean = self._mean + delta * (added / total)
            self._squares = self._squares + squares + delta.square() * (before * (added / total))
            before = total

    def qparams(self) -> QParams:
        """The parameters. Raises CalibrationError where nothing was seen."""
        low, high = self._seen.low.double(), self._seen.high.double()
        reach = self._deviations * (self._squares / self._seen.count).sqrt()
        mean = self._mean.clamp(low, high)
        return self._seen.qparams(torch.maximum(low, mean - reach), torch.minimum(high, mean + reach))
