"""Moving average of the batches' minima and maxima (Jacob et al., CVPR 2018, arXiv:1712.05877, section 3.1)."""

from dataclasses import dataclass
from typing import final

from torch import Tensor

from isobit.core.errors import SettingError
from isobit.core.qparams import QParams
from isobit.core.scheme import Scheme
from isobit.observers.seen_range import SeenRange, row_range


@dataclass(frozen=True, kw_only=True, slots=True)
class MovingAverage:
    """Settings of the moving average: the share of the old value that each batch keeps, from 0 to below 1.

    >>> import torch
    >>> observer = MovingAverage(momentum=0.75).build(Scheme(bits=8, signed=False))
    >>> for highest in (1.0, 2.0):
    ...     observer.see(torch.tensor([0.0, highest]))
    >>> round(observer.qparams().scale.item() * 255, 6)
    1.25
    """

    momentum: float = 0.9

    def __post_init__(self) -> None:
        if not 0 <= self.momentum < 1:
            raise SettingError(f"momentum has to be at least 0 and below 1, got {self.momentum!r}")

    def build(self, scheme: Scheme) -> "MovingAverageObserver":
        """An observer that has seen nothing."""
        return MovingAverageObserver(scheme, momentum=self.momentum)


@final
class MovingAverageObserver:
    """m <- momentum · m + (1 - momentum) · m_batch for the minimum and the maximum; the first batch assigns.

    By its definition the only observer whose result depends on the order and the size of the batches.
    """

    def __init__(self, scheme: Scheme, *, momentum: float) -> None:
        self._seen = SeenRange(scheme)
        self._momentum = momentum
        self._average: tuple[Tensor, Tensor] | None = None

    def see(self, x: Tensor) -> None:
        """Take in one batch. Raises CalibrationError where it holds NaN or Inf."""
        rows = self._seen.see(x)
        if rows is None:
            return
        low, high = (edge.double() for edge in row_range(rows))
        if self._average is not None:
            share = 1 - self._momentum
            low = self._momentum * self._average[0] + share * low
            high = self._momentum * self._average[1] + share * high
        self._average = low, high

    def qparams(self) -> QParams:
        """The parameters. Raises CalibrationError where nothing was seen."""
        return self._seen.qparams(*(self._average or (self._seen.low, self._seen.high)))
