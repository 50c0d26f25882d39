"""Min-max: the range is everything that was seen."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from isobit.core.grid import LARGEST_FLOAT16, Float16
from isobit.core.qparams import QParams
from isobit.core.scheme import Scheme
from isobit.observers.seen_range import SeenRange


@dataclass(frozen=True, kw_only=True, slots=True)
class MinMax:
    """Settings of min-max: there are none.

    >>> import torch
    >>> observer = MinMax().build(Scheme(bits=8))
    >>> observer.see(torch.tensor([-1.27, 0.5]))
    >>> round(observer.qparams().scale.item(), 6)
    0.01
    """

    def build(self, scheme: Scheme) -> "MinMaxObserver":
        """An observer that has seen nothing."""
        return MinMaxObserver(scheme)


@final
class MinMaxObserver:
    """[low, high] = [min x, max x]. Nothing is clipped; one outlier stretches the scale of everything."""

    def __init__(self, scheme: Scheme) -> None:
        self._seen = SeenRange(scheme)

    def see(self, x: Tensor) -> None:
        """Take in one batch. Raises CalibrationError where it holds NaN or Inf."""
        self._seen.see(x)

    def qparams(self) -> QParams:
        """The parameters. Raises CalibrationError where nothing was seen."""
        return self._seen.qparams(self._seen.low, self._seen.high)

    def choice(self) -> str:
        """What a grid that has no scale to choose clips; empty where it clips nothing."""
        if not isinstance(self._seen.scheme.grid, Float16):
            return ""
        largest = float(torch.maximum(-self._seen.low, self._seen.high).max())
        if largest <= LARGEST_FLOAT16:
            return ""
        return f"values up to {largest:g} are beyond {LARGEST_FLOAT16}, the largest float16, and become that"
