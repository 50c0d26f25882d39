"""Calibration data: too few, too alike, or several domains in one set, such as day and night; equal draws of each."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isobit.core.batches import Batch, Data, batches
from isobit.core.errors import SettingError

FEW = 64
"""Samples below which ranges depend on which ones were drawn."""

KEPT = 2048
"""Samples of which statistics are kept; more say nothing new."""

EXPLAINED = 0.84
"""Share of a statistic's variance that two domains explain: 0.64 for halves of one normal distribution, 0.75 for those
of a uniform one."""

VALLEY = 0.02
"""Share of samples in the middle fifth between two domains, at most: 0.13 and 0.1 for those halves."""

SMALLEST = 0.05
"""Share of the samples that a domain has at least; less are outliers."""

ALIKE = 1e-3
"""Square distance of two thumbnails, as a share of the mean one, below which they show the same."""

REPEATED = 0.2
"""Share of samples that show what an earlier one does that is worth a word."""

MOST_DOMAINS = 8

THUMBNAIL = 8

SIDE = 64
"""Rows and columns of an image that are looked at, at least: every second one of 128."""


@dataclass(frozen=True, eq=False)
class Domains:
    """Which domain each sample is of, (samples,), and the statistic by which the first two were told apart."""

    of: Tensor
    by: str = ""

    @property
    def sizes(self) -> tuple[int, ...]:
        """Samples of each domain."""
        return tuple(int(n) for n in torch.bincount(self.of))


class Survey:
    """Statistics of each sample's first input of floats, gathered batch by batch."""

    def __init__(self) -> None:
        self.samples = 0
        self._statistics: list[Tensor] = []
        self._thumbnails: list[Tensor] = []
        self.names: tuple[str, ...] = ()

    def see(self, inputs: Sequence[Any]) -> None:
        """Take in a batch; inputs that are no floats (n, channels, …) count, and say nothing."""
        x = next((x for x in inputs if isinstance(x, Tensor)), None)
        if x is None or not x.dim():
            return
        self.samples += len(x)
        if not x.is_floating_point() or x.dim() < 3 or self.samples > KEPT:
            return
        x = _thinned(x.detach())
        flat = x.flatten(2).float()
        self.names, found = statistics(flat)
        self._statistics.append(found.cpu())
        if x.dim() == 4:
            self._thumbnails.append(F.adaptive_avg_pool2d(x.float(), THUMBNAIL).flatten(1).cpu())

    def domains(self) -> Domains:
        """The domains of the samples seen."""
        if not self._statistics:
            return Domains(torch.zeros(self.samples, dtype=torch.int64))
        return domains(torch.cat(self._statistics), self.names)

    def repeated(self) -> int:
        """How many samples show what an earlier one shows."""
        if not self._thumbnails:
            return 0
        x = torch.cat(self._thumbnails)
        squares = torch.cdist(x, x).square()
        near = squares < ALIKE * squares.mean()
        return int(near.tril(-1).any(1).sum())

    def findings(self) -> tuple[str, ...]:
        """What is unusual about the data, and what to do."""
        return tuple(self._found())

    def _found(self) -> Iterator[str]:
        if 0 < self.samples < FEW:
            yield (
                f"calibrated on {self.samples} samples: ranges then depend on which ones these are. "
                f"Give {FEW} to 1,024 (--samples)"
            )
        repeated = self.repeated()
        if self.samples and repeated > REPEATED * min(self.samples, KEPT):
            yield (  # each scene is a domain by itself, which says nothing more
                f"{repeated} of {self.samples} calibration samples show what an earlier one shows, such as frames of "
                "one scene: ranges are those of few. Give samples that differ"
            )
            return
        found = self.domains()
        if len(found.sizes) > 1:
            sizes = ", ".join(map(str, found.sizes))
            uneven = max(found.sizes) > 2 * min(found.sizes)
            remedy = "Draw equally from each (--balance, isobit.balanced)" if uneven else "See that none is missing"
            yield (
                f"the calibration data mix {len(found.sizes)} domains, told apart by {found.by}, of {sizes} samples: "
                f"the ranges have to hold all of them. {remedy}, and measure each one by itself"
            )


def _thinned(x: Tensor) -> Tensor:
    """Every n-th row and column of large images: what is asked here, a part of the pixels tells."""
    steps = [max(1, size // SIDE) for size in x.shape[2:]] if x.dim() == 4 else []
    return x[:, :, :: steps[0], :: steps[1]] if steps else x


@contextmanager
def surveyed(model: nn.Module) -> Iterator[Survey]:
    """A survey of what the model is called with meanwhile."""
    survey = Survey()
    hook = model.register_forward_pre_hook(lambda _, inputs: survey.see(inputs))
    try:
        yield survey
    finally:
        hook.remove()


def statistics(x: Tensor) -> tuple[tuple[str, ...], Tensor]:
    """Per sample of (n, channels, values): the means and log deviations of channels, and how far colours go apart.

    The last is log(1 - correlation of the first and the last channel), which is lowest, log 1e-4, for grey images under
    any normalization.
    """
    channels = x.shape[1]
    mean, deviation = x.mean(2), x.std(2, correction=0)
    names = [f"the {what} of channel {i}" for what in ("mean", "contrast") for i in range(channels)]
    found = [mean, (deviation + 1e-3 * deviation.mean() + 1e-12).log()]
    if channels > 1:
        first, last = x[:, 0] - mean[:, :1], x[:, -1] - mean[:, -1:]
        alike = (first * last).mean(1) / (deviation[:, 0] * deviation[:, -1]).clamp(min=1e-12)
        found.append((1 - alike).clamp(min=1e-4).log()[:, None])
        names.append("colour")
    return tuple(names), torch.cat(found, 1)


def domains(x: Tensor, names: Sequence[str]) -> Domains:
    """Split samples (n, statistics) in two where one statistic has two separate modes, and the parts again."""
    of, by = torch.zeros(len(x), dtype=torch.int64), ""
    pending, count = [0], 1
    while pending and count < MOST_DOMAINS:
        number = pending.pop(0)
        members = (of == number).nonzero().flatten()
        best = max(
            ((split[0], i, split[1]) for i in range(x.shape[1]) if (split := split_in_two(x[members, i], len(x)))),
            key=lambda found: found[0],
            default=None,
        )
        if best is None:
            continue
        by = by or names[best[1]]
        of[members[x[members, best[1]] > best[2]]] = count
        pending += [number, count]
        count += 1
    return Domains(of, by)


def split_in_two(x: Tensor, samples: int) -> tuple[float, float] | None:
    """The share of the variance of values (n,) that the best two parts explain, and the threshold (Otsu 1979).

    None unless both parts hold `SMALLEST` of all `samples`, explain `EXPLAINED` and leave a `VALLEY` between them.
    """
    n, least = len(x), max(4, int(SMALLEST * samples))
    if n < 2 * least:
        return None
    values = x.double().sort().values
    total, sums = values.sum(), values.cumsum(0)[:-1]
    below = torch.arange(1, n, dtype=torch.float64)
    low, high = sums / below, (total - sums) / (n - below)
    between = below * (n - below) / n**2 * (high - low).square()
    at = int(between[least - 1 : n - least].argmax()) + least - 1
    variance = float(values.var(correction=0))
    explained = float(between[at]) / variance if variance > 0 else 0.0
    place = (values - low[at]) / (high[at] - low[at]).clamp(min=1e-30)
    valley = float(((place > 0.4) & (place < 0.6)).double().mean())
    if explained < EXPLAINED or valley > VALLEY:
        return None
    return explained, float(values[at] + values[at + 1]) / 2


def balanced(data: Data, *, samples: int | None = None, batch_size: int = 50) -> list[Batch]:
    """Equally many samples of each domain of the data, in all at most `samples`, evenly spread over each domain.

    The domains are those of `Survey.domains`; data of one domain are thinned out evenly. Data that can be read only
    once are held in memory. Raises CalibrationError for unfit data, SettingError for fewer samples than domains.
    """
    held = data if not isinstance(data, Iterator) else list(data)
    survey = Survey()
    for batch in batches(held):
        for part in _pieces(batch, KEPT):
            survey.see(part.inputs)
    found = survey.domains()
    sizes = found.sizes
    each = min(sizes) if samples is None else min(*sizes, samples // len(sizes))
    if each < 1:
        raise SettingError(f"the data have {len(sizes)} domains: {samples} samples are less than one of each")
    wanted: set[int] = set()
    for number, size in enumerate(sizes):
        members = (found.of == number).nonzero().flatten().tolist()
        wanted |= {members[i * size // each] for i in range(each)}
    return _chosen(held, wanted, batch_size)


def _pieces(batch: Batch, size: int) -> Iterator[Batch]:
    for i in range(0, batch.size, size):
        yield Batch(tuple(x[i : i + size] for x in batch.inputs))


def _chosen(data: Data, wanted: set[int], batch_size: int) -> list[Batch]:
    """The samples of these numbers, in their order."""
    start, parts = 0, list[Batch]()
    for batch in batches(data):
        index = torch.tensor([i for i in range(batch.size) if start + i in wanted], dtype=torch.int64)
        start += batch.size
        if len(index):
            labels = None if batch.labels is None else batch.labels[index]
            parts.append(Batch(tuple(x[index] for x in batch.inputs), labels))
    inputs = tuple(torch.cat(column) for column in zip(*(part.inputs for part in parts), strict=True))
    found = [part.labels for part in parts if part.labels is not None]
    known = torch.cat(found) if len(found) == len(parts) else None
    cuts = range(0, len(inputs[0]), batch_size)
    return [
        Batch(tuple(x[i : i + batch_size] for x in inputs), None if known is None else known[i : i + batch_size])
        for i in cuts
    ]
