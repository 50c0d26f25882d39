"""A histogram that grows with its data and is the same for any order and any split of it.

Bins have the width 2^k and edges at multiples of it; k is the smallest one at which all values fit, a function
of the largest magnitude alone. When that grows, neighbouring bins merge pairwise, which gives exactly the
counts that the wider bins would have had from the start: trunc(trunc(x / w) / 2) = trunc(x / 2w), and neither
the product with 2^-k nor the truncation rounds.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from isobit.core.errors import SettingError
from isobit.core.granularity import PerTensor
from isobit.core.qparams import QParams
from isobit.core.scheme import Scheme
from isobit.observers.seen_range import SeenRange

CHUNK = 1 << 17
"""Values counted at a time: what stays in the cache of one core."""

SMALLEST_EXPONENT = -120
"""The smallest k: below it 2^-k would leave float32."""

RangeSearch = Callable[["HistogramPart", Scheme], tuple[Tensor, Tensor]]
"""From a part, and the scheme with its sign settled, to (low, high), each (rows,), in units of the bin width."""


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class HistogramPart:
    """Some rows of a histogram. All values are in units of the row's bin width, so that none over- or underflows.

    `right[:, j]` counts the values in [j, j + 1) and `left[:, j]` those in (-j - 1, -j], for j >= 1; `right[:, 0]`
    counts those in (-1, 1). `values` holds the exact values, ascending, as long as they are few.
    """

    low: Tensor
    high: Tensor
    right: Tensor
    left: Tensor
    values: Tensor | None

    def points(self) -> tuple[Tensor, Tensor]:
        """Values in ascending order (float32) and how many each stands for (float64), both (rows, points).

        The exact values as long as they are few; else the exact ends, and the middle of each bin inside them.
        """
        if self.values is not None:
            return self.values, torch.ones_like(self.values, dtype=torch.float64)
        bins = self.right.shape[1]
        middles = torch.arange(1, bins, device=self.right.device, dtype=torch.float32) + 0.5
        middles = torch.cat([-middles.flip(0), middles.new_zeros(1), middles])
        counts = torch.cat([self.left[:, 1:].flip(1), self.right], dim=1)
        used = counts.any(dim=0)
        middles, counts = middles[used], counts[:, used]
        row, taken = torch.arange(len(counts), device=counts.device), (counts > 0).int()
        counts[row, taken.argmax(1)] -= 1
        counts[row, len(middles) - 1 - taken.flip(1).argmax(1)] -= 1
        low, high, one = self.low.float()[:, None], self.high.float()[:, None], torch.ones_like(counts[:, :1])
        points = torch.cat([low, middles.clamp(low, high), high], dim=1)
        return points, torch.cat([one, counts, one], dim=1).double()


@final
class StreamingHistogram:
    """Counts per row (one row for each scale) over `bins` bins on each side of 0, and the exact range.

    `bins` is a power of two from 64 to 16,384; None means 2,048 for one scale and 512 for each of many. As long
    as the values of a row take no more room than its bins, they are kept as they are.
    """

    def __init__(self, scheme: Scheme, *, bins: int | None = None) -> None:
        if bins is None:
            bins = 2048 if isinstance(scheme.granularity, PerTensor) else 512
        if not 64 <= bins <= 1 << 14 or bins & (bins - 1):
            raise SettingError(f"bins has to be a power of two from 64 to 16384, got {bins}")
        self.seen = SeenRange(scheme)
        self.bins = bins
        self._values: list[Tensor] = []
        self._counted: _Counts | None = None

    def see(self, x: Tensor) -> None:
        """Count one batch. Raises CalibrationError as `SeenRange.see` does."""
        rows = self.seen.see(x)
        if rows is None:
            return
        exponent = self._exponent()
        if self._counted is None and self.seen.count <= 2 * self.bins:
            self._values.append(rows.clone())
            return
        if self._counted is None:
            self._counted = _Counts(exponent, self.bins)
            for earlier in self._values:
                self._counted.add(earlier)
            self._values = []
        self._counted.widen(exponent)
        self._counted.add(rows)

    def qparams_from(self, search: RangeSearch) -> QParams:
        """The parameters for the range that `search` finds in each part."""
        scheme = self.seen.resolved_scheme()
        ranges = [search(part, scheme) for part in self.parts()]
        width = torch.exp2(self._exponent().double())
        low = torch.cat([low for low, _ in ranges]).double() * width
        high = torch.cat([high for _, high in ranges]).double() * width
        return self.seen.qparams(low, high)

    def parts(self) -> Iterator[HistogramPart]:
        """The histogram, some rows at a time so that a search over them needs little memory."""
        exponent = self._exponent()
        width = torch.exp2(exponent.double())
        low, high = self.seen.low.double() / width, self.seen.high.double() / width
        values = torch.cat(self._values, dim=1) if self._values else None
        size = max(1, (1 << 16) // self.bins)
        for start in range(0, len(low), size):
            part = slice(start, start + size)
            counts = self._counted.rows(part) if self._counted is not None else _Counts(exponent[part], self.bins)
            exact = None
            if values is not None:
                counts.add(values[part])
                exact = (values[part] * torch.exp2(-exponent[part].float())[:, None]).sort(dim=1).values
            yield HistogramPart(low=low[part], high=high[part], right=counts.right, left=counts.left, values=exact)

    def _exponent(self) -> Tensor:
        """The k of each row: the smallest with max |x| < bins · 2^k."""
        largest = torch.maximum(self.seen.low.abs(), self.seen.high.abs())
        exponent = torch.frexp(largest).exponent - (self.bins.bit_length() - 1)
        return exponent.where(largest > 0, SMALLEST_EXPONENT).clamp(min=SMALLEST_EXPONENT)


@final
class _Counts:
    """The counts themselves: int64 (rows, bins) to the right of 0 and to the left of it."""

    def __init__(self, exponent: Tensor, bins: int) -> None:
        self.exponent = exponent
        self.right = torch.zeros(len(exponent), bins, dtype=torch.int64, device=exponent.device)
        self.left = torch.zeros_like(self.right)

    def rows(self, part: slice) -> "_Counts":
        """Some rows, sharing memory."""
        counts = _Counts(self.exponent[part], 0)
        counts.right, counts.left = self.right[part], self.left[part]
        return counts

    def widen(self, exponent: Tensor) -> None:
        """Merge bins until their widths are 2^exponent; it must not be smaller than the present one."""
        shift = (exponent - self.exponent).clamp(max=62).long()[:, None]
        if not bool(shift.any()):
            return
        target = torch.arange(self.right.shape[1], device=shift.device)[None, :] >> shift
        self.right = torch.zeros_like(self.right).scatter_add_(1, target, self.right)
        self.left = torch.zeros_like(self.left).scatter_add_(1, target, self.left)
        self.right[:, 0] += self.left[:, 0]
        self.left[:, 0] = 0
        self.exponent = exponent

    def add(self, rows: Tensor) -> None:
        """Count values, (rows, values) in float32, all of which fit."""
        bins = self.right.shape[1]
        inverse = torch.exp2(-self.exponent.float())[:, None]
        counts = torch.zeros(len(rows), 2 * bins, dtype=torch.int64, device=rows.device)
        chunk = CHUNK if rows.device.type == "cpu" else rows.numel()
        together = max(1, chunk // rows.shape[1])
        for start in range(0, len(rows), together):
            part = slice(start, start + together)
            for values in torch.split(rows[part], chunk, dim=1):
                counts[part] += _count(values, inverse[part], bins)
        self.right += counts[:, bins:]
        self.left[:, 1:] += counts[:, 1:bins].flip(1)


def _count(values: Tensor, inverse: Tensor, bins: int) -> Tensor:
    """How many values have trunc(x / w) + bins = 0, 1, …: (rows, n) and (rows, 1) to (rows, 2 bins)."""
    number = (values * inverse).trunc_().add_(bins)
    if len(values) == 1:
        return torch.bincount(number[0].to(torch.int16), minlength=2 * bins)[None]  # narrow integers: half the time
    first = torch.arange(0, len(values) * 2 * bins, 2 * bins, device=values.device)[:, None]
    return torch.bincount((number.to(torch.int64) + first).flatten(), minlength=len(values) * 2 * bins).reshape(
        len(values), -1
    )
