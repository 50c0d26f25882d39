"""The interface of an observer: it sees batches of one tensor, then says the scale and the zero point."""

from typing import Protocol

from torch import Tensor

from isobit.core.qparams import QParams
from isobit.core.scheme import Scheme


class Observer(Protocol):
    """Collects statistics of one tensor in bounded memory, batch by batch."""

    def see(self, x: Tensor) -> None:
        """Take in one batch; an empty one changes nothing. Raises CalibrationError where it holds NaN or Inf."""

    def qparams(self) -> QParams:
        """The parameters for everything seen so far. Raises CalibrationError where nothing was seen."""


class ObserverSettings(Protocol):
    """Frozen settings of an observer."""

    def build(self, scheme: Scheme) -> Observer:
        """An observer that has seen nothing. Its granularity is the scheme's."""
