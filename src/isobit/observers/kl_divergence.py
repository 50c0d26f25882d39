"""KL divergence: TensorRT's entropy calibration (Migacz, "8-bit inference with TensorRT", GTC 2017)."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from isobit.core.grid import Codebook, MidRise, Uniform
from isobit.core.qparams import QParams
from isobit.core.scheme import Scheme
from isobit.observers.streaming_histogram import HistogramPart, StreamingHistogram

TIE = 1e-12
"""Divergences closer than this are equal: the last threshold among them is taken, as TensorRT does."""

ONE_SIDED = 0.5**0.5
"""The share of a range on one side of 0 from which all 2^bits levels are nearer to what that side gets than half."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KlDivergence:
    """Settings of the KL observer: bins on each side of 0; None means 2,048, TensorRT's number, or 512 for many scales.

    >>> observer = KlDivergence().build(Scheme(bits=8))
    >>> observer.see(torch.cat([torch.linspace(-1, 1, 10001), torch.tensor([4.0])]))
    >>> bool(observer.qparams().scale * 127 < 1.1)
    True
    """

    bins: int | None = None

    def build(self, scheme: Scheme) -> "KlDivergenceObserver":
        """An observer that has seen nothing."""
        return KlDivergenceObserver(scheme, bins=self.bins)


def kl_range(part: HistogramPart, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """The range up to the threshold t of `kl_threshold`, inside what was seen.

    Symmetric and signed: t of |x|, over the levels to one side of 0; where 0 is none of them, as on the mid-rise grid,
    the highest level lies in the middle of the last group, at t (1 - 2^-bits). Symmetric and unsigned: t of max(x, 0).
    Asymmetric: t of |x|, clipping at t and at -t; over all levels where nearly the whole range lies on one side
    of 0, as after a ReLU or SiLU, else over half of them.
    """
    magnitudes = part.right + part.left
    largest = torch.maximum(part.high, -part.low)
    if scheme.symmetric and not scheme.signed:
        magnitudes, largest = part.right, part.high.clamp(min=0)
    wide = (
        not scheme.signed
        if scheme.symmetric
        else largest > ONE_SIDED * (part.high.clamp(min=0) - part.low.clamp(max=0))
    )
    wide = torch.as_tensor(wide, device=largest.device).expand_as(largest)
    threshold = torch.empty_like(largest)
    for one_sided in (False, True):
        chosen = wide == one_sided
        if bool(chosen.any()):
            edges = group_edges(scheme, one_sided=one_sided)
            threshold[chosen] = kl_threshold(magnitudes[chosen], edges.to(largest.device)).double()
    threshold = torch.minimum(threshold, largest)
    if scheme.signed and isinstance(scheme.grid, MidRise | Codebook):
        threshold = threshold * (1 - 0.5**scheme.bits)
    if scheme.symmetric:
        return (-threshold if scheme.signed else torch.zeros_like(threshold)), threshold
    return part.low.clamp(max=0).maximum(-threshold), part.high.clamp(min=0).minimum(threshold)


def group_edges(scheme: Scheme, *, one_sided: bool) -> Tensor:
    """Where the groups of bins that share a level begin and end, as shares of the threshold from 0 to 1, float64.

    Equal groups for even levels, also those that a codebook starts with: 2^(bits - 1), or 2^bits where it is one-sided.
    For the others the middles between the levels.
    """
    if isinstance(scheme.grid, Uniform | MidRise | Codebook):
        groups = 1 << (scheme.bits if one_sided else scheme.bits - 1)
        return torch.arange(groups + 1, dtype=torch.float64) / groups
    levels = torch.tensor([level for level in scheme.levels if level >= 0], dtype=torch.float64)
    middles = (levels[1:] + levels[:-1]) / 2
    return torch.cat([levels.new_zeros(1), middles / levels[-1:], levels.new_ones(1)])


def kl_threshold(counts: Tensor, edges: Tensor) -> Tensor:
    """The threshold of least KL(P, Q) in bins, (rows,), from counts of magnitudes, (rows, bins).

    For each threshold i from the number of groups to the last bin in use, after bins[0] <- bins[1]:

    - P = bins[:i], with all the counts from i on added to P[i - 1];
    - Q = bins[:i] without them; the mass of each group, spread evenly over its non-empty bins;
    - KL(P, Q) = Σ P log(P / Q), both scaled to sum 1; infinite where P > 0 and Q = 0.

    The last of the least wins. Thresholds that leave more outside than inside don't count, which TensorRT lacks:
    where 0 has few values around it, a lone one among them makes both P and Q a single spike, KL = 0.

    Sums of n log n and of the groups come from running sums, so that all thresholds together cost bins · groups
    instead of bins².
    """
    counts = counts.double()
    last = (counts > 0).double() * torch.arange(1, counts.shape[1] + 1, device=counts.device)
    ends = last.amax(1, keepdim=True)
    counts[:, 0] = counts[:, 1]
    sums = [torch.nn.functional.pad(s.cumsum(1), (1, 0)) for s in (counts, (counts > 0).double(), _n_log_n(counts))]
    first = min(max(len(edges) - 1, 2), counts.shape[1])
    thresholds = torch.arange(first, counts.shape[1] + 1, device=counts.device)
    bounds = (edges * thresholds[:, None]).ceil().long()
    rows = max(1, (1 << 21) // bounds.numel())
    divergences = [
        _divergences(counts[i : i + rows], [s[i : i + rows] for s in sums], thresholds, bounds)
        for i in range(0, len(counts), rows)
    ]
    divergence = torch.cat(divergences).masked_fill(thresholds > ends, torch.inf)
    least = divergence.amin(1, keepdim=True)
    chosen = (divergence <= least + TIE) * thresholds
    return torch.where(least.isfinite(), chosen.amax(1, keepdim=True).double(), ends).squeeze(1)


def _divergences(counts: Tensor, sums: list[Tensor], thresholds: Tensor, bounds: Tensor) -> Tensor:
    """KL of each threshold, (rows, thresholds), infinite or NaN-free; see `kl_threshold`."""
    mass, used, n_log_n = sums
    groups = mass[:, bounds].diff(dim=2)
    level = groups / used[:, bounds].diff(dim=2).clamp(min=1)
    inside, total = mass[:, thresholds], mass[:, -1:]
    outside = total - inside
    final_count = counts[:, thresholds - 1]
    final_level = level.gather(2, _last_group(bounds)[None, :, None].expand(len(counts), -1, -1)).squeeze(2)
    p_log_p = n_log_n[:, thresholds] - _n_log_n(final_count) + _n_log_n(final_count + outside)
    # an outlier in an empty bin has P > 0 and Q = 0; the level of its group belongs to other bins
    log_final = torch.where(final_count > 0, final_level, torch.zeros_like(final_level)).log()
    p_log_q = torch.xlogy(groups, level).sum(2) + torch.where(outside > 0, outside * log_final, 0.0)
    divergence = (p_log_p - p_log_q) / total - total.log() + inside.log()
    return divergence.masked_fill(outside > inside, torch.inf).nan_to_num(nan=torch.inf, neginf=torch.inf)


def _last_group(bounds: Tensor) -> Tensor:
    """The group that holds the last bin below each threshold, (thresholds,)."""
    return (bounds[:, :-1] <= bounds[:, -1:] - 1).sum(1) - 1


def _n_log_n(n: Tensor) -> Tensor:
    return torch.xlogy(n, n)


@final
class KlDivergenceObserver:
    """The range of least KL divergence between the histograms before and after quantization; see `kl_range`."""

    def __init__(self, scheme: Scheme, *, bins: int | None) -> None:
        self._histogram = StreamingHistogram(scheme, bins=bins)

    def see(self, x: Tensor) -> None:
        """Take in one batch. Raises CalibrationError where it holds NaN or Inf."""
        self._histogram.see(x)

    def qparams(self) -> QParams:
        """The parameters. Raises CalibrationError where nothing was seen."""
        return self._histogram.qparams_from(kl_range)
