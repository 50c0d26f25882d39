"""Mean magnitude: the initial step size of LSQ (Esser et al., ICLR 2020, arXiv:1902.08153, section 2.1)."""

from dataclasses import dataclass
from math import sqrt
from typing import final

import torch
from torch import Tensor

from isobit.core.grid import Codebook, Geometric
from isobit.core.qparams import QParams
from isobit.core.scheme import Scheme
from isobit.observers.seen_range import SeenRange, in_float64


@dataclass(frozen=True, kw_only=True, slots=True)
class MeanAbs:
    """Settings of the mean magnitude: there are none.

    >>> observer = MeanAbs().build(Scheme(bits=3))
    >>> observer.see(torch.tensor([-1.0, 2.0, 3.0]))
    >>> round(observer.qparams().scale.item() * 3**0.5, 6)
    4.0
    """

    def build(self, scheme: Scheme) -> "MeanAbsObserver":
        """An observer that has seen nothing."""
        return MeanAbsObserver(scheme)


def positive_levels(scheme: Scheme) -> int:
    """How many levels lie above 0, at least 1; those of a codebook, whose levels are indices, as far as it is even."""
    if isinstance(scheme.grid, Codebook):
        return 1 << (scheme.bits - 1) if scheme.signed else (1 << scheme.bits) - 1
    return max(1, sum(level > 0 for level in scheme.levels))


@final
class MeanAbsObserver:
    """s = 2 mean|x| / sqrt(Q), where Q is the number of positive levels, at least 1.

    On a uniform grid Q is the highest level, as in the paper; other grids reach as far as a uniform one of as many
    levels, but a geometric one, which has no step that a mean could set: it reaches as far as the range seen. An
    asymmetric range of that length has as large a part below 0 as the range seen.
    Batches add up in float64; their order moves its last bits, and the scale is float32.
    """

    def __init__(self, scheme: Scheme) -> None:
        self._seen = SeenRange(scheme)
        self._sum = torch.zeros(1, dtype=torch.float64)

    def see(self, x: Tensor) -> None:
        """Take in one batch. Raises CalibrationError where it holds NaN or Inf."""
        rows = self._seen.see(x)
        if rows is not None:
            for values in in_float64(rows):
                self._sum = self._sum.to(rows.device) + values.abs_().sum(1)

    def qparams(self) -> QParams:
        """The parameters. Raises CalibrationError where nothing was seen."""
        scheme = self._seen.resolved_scheme()
        if isinstance(scheme.grid, Geometric):
            return self._seen.qparams(self._seen.low, self._seen.high)
        positive = positive_levels(scheme)
        scale = 2 * (self._sum / self._seen.count) / sqrt(positive)
        if scheme.symmetric:
            return self._seen.qparams(-scale * positive if scheme.signed else torch.zeros_like(scale), scale * positive)
        length = scale * (scheme.quant_max - scheme.quant_min)
        below, above = -self._seen.low.double().clamp(max=0), self._seen.high.double().clamp(min=0)
        low = -length * below / (below + above).clamp(min=torch.finfo(torch.float64).tiny)
        return self._seen.qparams(low, low + length)
