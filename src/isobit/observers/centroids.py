"""Centroids: one-dimensional k-means, for codebooks (Han et al., ICLR 2016, arXiv:1510.00149, section 3)."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from isobit.core.errors import SettingError
from isobit.core.granularity import PerTensor
from isobit.core.grid import Codebook
from isobit.core.qparams import QParams
from isobit.core.scheme import Scheme
from isobit.observers.seen_range import SeenRange


@dataclass(frozen=True, kw_only=True, slots=True)
class Centroids:
    """Settings of k-means: at most `iterations` of Lloyd's.

    >>> observer = Centroids().build(Scheme(bits=1, grid=Codebook()))
    >>> observer.see(torch.tensor([-1.0, -3.0, 5.0, 6.0, 7.0]))
    >>> observer.qparams().codebook.tolist()
    [-2.0, 6.0]
    """

    iterations: int = 300

    def __post_init__(self) -> None:
        if self.iterations < 0:
            raise SettingError(f"iterations has to be at least 0, got {self.iterations}")

    def build(self, scheme: Scheme) -> "CentroidsObserver":
        """An observer that has seen nothing."""
        return CentroidsObserver(scheme, iterations=self.iterations)


def lloyd(values: Tensor, count: int, iterations: int) -> Tensor:
    """Lloyd's algorithm from `count` centroids evenly over [min, max]. Shapes: values (n,) ascending, in float64.

    On sorted values a cluster is a run, and its sum a difference of two running sums. An empty cluster stays.
    """
    sums = torch.cat([values.new_zeros(1), values.cumsum(0)])
    centroids = torch.linspace(0, 1, count, dtype=values.dtype, device=values.device)
    centroids = values[0] + centroids * (values[-1] - values[0])
    ends = torch.tensor([0, values.numel()], device=values.device)
    for _ in range(iterations):
        inner = torch.searchsorted(values, (centroids[1:] + centroids[:-1]) / 2, right=True)
        bounds = torch.cat([ends[:1], inner, ends[1:]])
        sizes = bounds.diff()
        means = torch.where(sizes > 0, sums[bounds].diff() / sizes.clamp(min=1), centroids)
        if torch.equal(means, centroids):
            break
        centroids = means
    return centroids.sort().values


@final
class CentroidsObserver:
    """The centroids of everything that was seen, as the codebook of a whole tensor; keeps what it saw: for weights.

    For a grid without a codebook, or with several scales, it is the range of what was seen, as `min_max` has it.
    """

    def __init__(self, scheme: Scheme, *, iterations: int) -> None:
        self._seen = SeenRange(scheme)
        self._iterations = iterations
        self._clusters = isinstance(scheme.grid, Codebook) and scheme.granularity == PerTensor()
        self._values: list[Tensor] = []

    def see(self, x: Tensor) -> None:
        """Take in one batch. Raises CalibrationError where it holds NaN or Inf."""
        rows = self._seen.see(x)
        if rows is not None and self._clusters:
            self._values.append(rows.flatten().clone())

    def qparams(self) -> QParams:
        """The parameters. Raises CalibrationError where nothing was seen."""
        if not self._clusters:
            return self._seen.qparams(self._seen.low, self._seen.high)
        scheme = self._seen.resolved_scheme()
        values = torch.cat(self._values).double().sort().values
        values = values if scheme.signed else values.clamp(min=0)
        codebook = lloyd(values, 1 << scheme.bits, self._iterations).float()
        one = torch.ones((), device=codebook.device)
        return QParams(one, torch.zeros_like(one, dtype=torch.int32), scheme, codebook)
