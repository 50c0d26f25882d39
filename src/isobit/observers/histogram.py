"""Histogram: shrink the range from both sides, bin by bin, and keep the one of least quantization error."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from isobit.core.errors import SettingError
from isobit.core.qparams import QParams
from isobit.core.scheme import Scheme
from isobit.observers.range_error import best_range, has_free_ends, quantization_error
from isobit.observers.streaming_histogram import HistogramPart, StreamingHistogram


@dataclass(frozen=True, kw_only=True, slots=True)
class Histogram:
    """Settings of the histogram observer: how many ranges along the way are judged before it looks closer.

    >>> observer = Histogram().build(Scheme(bits=4, signed=False, symmetric=False))
    >>> observer.see(torch.cat([torch.linspace(0, 1, 5000), torch.tensor([3.0])]))
    >>> bool(observer.qparams().scale * 15 < 1.5)
    True
    """

    candidates: int = 64
    bins: int | None = None

    def __post_init__(self) -> None:
        if self.candidates < 2:
            raise SettingError(f"candidates has to be at least 2, got {self.candidates!r}")

    def build(self, scheme: Scheme) -> "HistogramObserver":
        """An observer that has seen nothing."""
        return HistogramObserver(scheme, self)


def histogram_range(part: HistogramPart, scheme: Scheme, *, candidates: int) -> tuple[Tensor, Tensor]:
    """Follow `shrinking_path`, judge ranges on it by their L2 error, and keep the best.

    `candidates` ranges, evenly spread over the path, come first; then every one between the neighbours of the
    best. A symmetric range shrinks at both ends at once, unless it is that of a codebook.
    """
    right, left, low, high = part.right, part.left, part.low.clamp(max=0), part.high.clamp(min=0)
    tied = not has_free_ends(scheme)
    if tied:
        right, left = (right + left if scheme.signed else right), torch.zeros_like(left)
        high = torch.maximum(high, -low) if scheme.signed else high
    low_edges, high_edges, start = shrinking_path(right, left)
    low_edges = torch.maximum(low_edges.double(), low[:, None])
    high_edges = torch.minimum(high_edges.double(), high[:, None])
    if tied:
        low_edges = -high_edges if scheme.signed else torch.zeros_like(high_edges)
    points, weights = part.points()

    def best(steps: Tensor) -> Tensor:
        steps = steps.clamp(max=low_edges.shape[1] - 1)
        errors = quantization_error(points, weights, low_edges.gather(1, steps), high_edges.gather(1, steps), scheme)
        return best_range(errors, steps, steps)[0][:, None]

    length = low_edges.shape[1] - 1 - start
    stride = -(-length // candidates)
    steps = torch.arange(candidates + 1, device=right.device)[None, :]
    chosen = best(start + stride * steps)
    near = torch.arange(-int(stride.max()), int(stride.max()) + 1, device=right.device)[None, :]
    near = torch.minimum(torch.maximum(near, -stride), stride)  # no row depends on another
    chosen = best(torch.maximum(chosen + near, start))
    return low_edges.gather(1, chosen).squeeze(1), high_edges.gather(1, chosen).squeeze(1)


def shrinking_path(right: Tensor, left: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The ranges met when the range loses one bin at a time, always at the end whose loss hurts less.

    With the values in the middle of their bins, the cost of a range that ends at t is Σ_{j >= t} n_j (j + ½ - t)²,
    in whole numbers when multiplied by 4. It is convex in t, so what each further bin costs only grows, and the
    path is the merge of both ends' costs in ascending order; the upper end goes first among equals.

    Shapes: right, left (rows, bins). Returns the lower and upper ends, (rows, 2 bins + 1), and the step at which
    only empty bins have gone, (rows, 1).
    """
    bins = right.shape[1]
    costs = torch.cat([_cost_of_each_bin(right), _cost_of_each_bin(left)], dim=1)
    costs, order = costs.sort(dim=1, stable=True)
    from_right = torch.nn.functional.pad((order < bins).cumsum(1), (1, 0))
    from_left = torch.nn.functional.pad((order >= bins).cumsum(1), (1, 0))
    empty = (costs == 0).sum(1, keepdim=True)
    return from_left - bins, bins - from_right, empty


def _cost_of_each_bin(counts: Tensor) -> Tensor:
    """What it costs to move the end from bins to bins - 1, …, from 1 to 0: int64 (rows, bins)."""
    ends = torch.arange(counts.shape[1], -1, -1, device=counts.device)
    odd = 2 * torch.arange(counts.shape[1], device=counts.device) + 1

    def above(weighted: Tensor) -> Tensor:
        return torch.nn.functional.pad(weighted.flip(1).cumsum(1), (1, 0))

    cost = above(counts * odd**2) - 4 * ends * above(counts * odd) + 4 * ends**2 * above(counts)
    return cost.diff(dim=1)


@final
class HistogramObserver:
    """The range on the shrinking path with the least Σ (x - x̂)²; see `histogram_range`."""

    def __init__(self, scheme: Scheme, settings: Histogram) -> None:
        self._histogram = StreamingHistogram(scheme, bins=settings.bins)
        self._candidates = settings.candidates

    def see(self, x: Tensor) -> None:
        """Take in one batch. Raises CalibrationError where it holds NaN or Inf."""
        self._histogram.see(x)

    def qparams(self) -> QParams:
        """The parameters. Raises CalibrationError where nothing was seen."""
        return self._histogram.qparams_from(lambda part, s: histogram_range(part, s, candidates=self._candidates))
