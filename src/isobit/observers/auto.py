"""Auto: of several rules for the range of a tensor, the mildest whose expected quantization error is near the least."""

from collections import Counter
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from isobit.core.errors import SettingError
from isobit.core.qparams import QParams
from isobit.core.scheme import Scheme
from isobit.observers.aciq import aciq_range
from isobit.observers.kl_divergence import kl_range
from isobit.observers.mse import mse_range
from isobit.observers.percentile import percentile_range
from isobit.observers.range_error import quantization_error
from isobit.observers.streaming_histogram import HistogramPart, RangeSearch, StreamingHistogram

KL_BITS = 6
"""Above it KL's threshold is no candidate: it is far from the least squared error, and its cost grows with 2^bits."""

RULES: dict[str, RangeSearch] = {
    "min_max": lambda part, _: (part.low, part.high),
    "percentile": lambda part, scheme: percentile_range(part, scheme, percentile=99.99),
    "aciq": aciq_range,
    "kl_divergence": lambda part, scheme: kl_range(part, scheme) if scheme.bits <= KL_BITS else (part.low, part.high),
    "mse": lambda part, scheme: mse_range(part, scheme, power=2.0, steps=100),
}
"""What is tried, with each rule's own settings at their defaults; of equals the first is taken."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Auto:
    """Settings of the choice: `slack` is the share of error above the least that a wider range may cost.

    >>> observer = Auto().build(Scheme(bits=8))
    >>> observer.see(torch.linspace(-1, 1, 10_000))
    >>> round(observer.qparams().scale.item() * 127, 3), observer.choice()
    (1.0, '')
    """

    slack: float = 0.1
    bins: int | None = None

    def __post_init__(self) -> None:
        if not self.slack >= 0:
            raise SettingError(f"slack has to be at least 0, got {self.slack!r}")

    def build(self, scheme: Scheme) -> "AutoObserver":
        """An observer that has seen nothing."""
        return AutoObserver(scheme, self)


@dataclass(frozen=True, eq=False, kw_only=True)
class Chosen:
    """The chosen ranges of some rows: `rule` is an index into `RULES`, `error` the mean (x - x̂)², in bin widths.

    `plain` is the error of min-max. Shapes: (rows,).
    """

    low: Tensor
    high: Tensor
    rule: Tensor
    error: Tensor
    plain: Tensor


def chosen_range(part: HistogramPart, scheme: Scheme, *, slack: float) -> Chosen:
    """Of all rules whose error is at most (1 + slack) times the least, the one with the widest range.

    Clipping takes from rare, large values, which a network may need more than their share of the error says: so the
    range is as wide as an error near the least allows. A range no wider than that of a rule before it is not taken.
    """
    ranges = [search(part, scheme) for search in RULES.values()]
    low, high = (torch.stack([r[end].double() for r in ranges], dim=1) for end in (0, 1))
    points, weights = part.points()
    errors = quantization_error(points, weights, low, high, scheme)
    allowed = errors <= errors.amin(1, keepdim=True) * (1 + slack)
    width = torch.minimum(high, part.high[:, None]).clamp(min=0) - torch.maximum(low, part.low[:, None]).clamp(max=0)
    width = width.masked_fill(~allowed, -1)
    rule = width.argmax(1, keepdim=True)
    picked = [t.gather(1, rule).squeeze(1) for t in (low, high, errors)]
    return Chosen(low=picked[0], high=picked[1], rule=rule.squeeze(1), error=picked[2], plain=errors[:, 0])


@final
class AutoObserver:
    """The range of the rule that `chosen_range` takes, for each scale by itself; `choice` says which and why."""

    def __init__(self, scheme: Scheme, settings: Auto) -> None:
        self._histogram = StreamingHistogram(scheme, bins=settings.bins)
        self._slack = settings.slack

    def see(self, x: Tensor) -> None:
        """Take in one batch. Raises CalibrationError where it holds NaN or Inf."""
        self._histogram.see(x)

    def qparams(self) -> QParams:
        """The parameters. Raises CalibrationError where nothing was seen."""

        def search(part: HistogramPart, scheme: Scheme) -> tuple[Tensor, Tensor]:
            found = chosen_range(part, scheme, slack=self._slack)
            return found.low, found.high

        return self._histogram.qparams_from(search)

    def choice(self) -> str:
        """Which rules and what that gains over min-max in the mean; empty where min-max is taken throughout.

        Raises CalibrationError where nothing was seen.
        """
        scheme = self._histogram.seen.resolved_scheme()
        parts = [chosen_range(part, scheme, slack=self._slack) for part in self._histogram.parts()]
        rules, names = torch.cat([part.rule for part in parts]).tolist(), list(RULES)
        if not any(rules):
            return ""
        clips = [part.rule > 0 for part in parts]
        gain = torch.cat([1 - (p.error / p.plain)[c] for p, c in zip(parts, clips, strict=True)]).mean()
        taken = [f"{names[rule]} {count}" for rule, count in sorted(Counter(rules).items())]
        text = names[rules[0]] if len(rules) == 1 else f"{', '.join(taken)} of {len(rules)} scales"
        return f"{text}: {float(gain):.0%} less squared error than min_max"
