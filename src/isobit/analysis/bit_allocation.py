"""Bits per channel: what a weight would gain if its channels had different widths (ACIQ, arXiv:1810.05723, section 4).

No target here has one width per channel, so this is an answer to "how uneven are the channels", not a setting.
"""

import math
from dataclasses import dataclass

from torch import Tensor

from isobit.core.errors import SettingError
from isobit.core.granularity import PerChannel, blocks
from isobit.observers.aciq import LIKELIER, Distribution, clipping_error, optimal_clip

MOST = 8
"""The most bits that a channel gets; the fewest are 0, with which all of it is 0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BitAllocation:
    """Bits of each channel, and the expected squared error, the mean over channels, with them and with equal bits."""

    bits: tuple[int, ...]
    distribution: Distribution
    error: float
    equal_error: float

    @property
    def mean_bits(self) -> float:
        """At most what was asked for."""
        return sum(self.bits) / len(self.bits)

    @property
    def gain_db(self) -> float:
        """By how many dB the expected error falls; 0 where equal bits are as good."""
        return 10 * math.log10(self.equal_error / self.error) if self.error > 0 else 0.0


def allocate_bits(weight: Tensor, *, bits: int, axis: int = 0) -> BitAllocation:
    """Bits per channel along `axis` whose mean is at most `bits`, from the spread of each channel.

    2^bits_i is proportional to σ_i^(2/3) (equation 12), or b_i^(2/3); rounded, between 0 and 8, with the factor found
    by bisection. Where rounding leaves that worse than equal bits, these are kept.
    Raises SettingError for bits outside 1 to 8.

    >>> import torch
    >>> weight = torch.randn(4, 1000, generator=torch.Generator().manual_seed(0)) * torch.tensor([[1.], [1], [8], [8]])
    >>> allocate_bits(weight, bits=4).bits
    (3, 3, 5, 5)
    """
    if isinstance(bits, bool) or not 1 <= bits <= MOST:
        raise SettingError(f"bits has to be a whole number from 1 to {MOST}, got {bits!r}")
    rows = blocks(weight.detach().double(), PerChannel(axis))
    rows = rows - rows.mean(1, keepdim=True)
    sigma, b = rows.square().mean(1).sqrt(), rows.abs().mean(1)
    distribution: Distribution = "gauss" if float(sigma.sum()) < LIKELIER * float(b.sum()) else "laplace"
    spread = (sigma if distribution == "gauss" else b).tolist()
    found, equal = bits_of(spread, bits=bits), [bits] * len(spread)
    error, equal_error = expected_error(spread, found, distribution), expected_error(spread, equal, distribution)
    if error > equal_error:
        found, error = equal, equal_error
    return BitAllocation(bits=tuple(found), distribution=distribution, error=error, equal_error=equal_error)


def bits_of(spread: list[float], *, bits: int) -> list[int]:
    """round(c + 2/3 log2 spread_i) between 0 and 8, with the largest c whose mean is at most `bits`."""
    shares = [2 / 3 * math.log2(s) if s > 0 else -math.inf for s in spread]
    if not any(map(math.isfinite, shares)):
        return [0] * len(spread)

    def rounded(c: float) -> list[int]:
        return [0 if s == -math.inf else min(max(round(c + s), 0), MOST) for s in shares]

    alive = [s for s in shares if math.isfinite(s)]
    low, high = -max(alive) - 1, MOST + 1 - min(alive)
    if sum(rounded(high)) <= bits * len(spread):
        return rounded(high)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(rounded(middle)) <= bits * len(spread) else (low, middle)
    return rounded(low)


def expected_error(spread: list[float], bits: list[int], distribution: Distribution) -> float:
    """The mean over channels of the least error at their bits; of 0 bits it is the whole variance, σ² or 2 b²."""
    whole = 1.0 if distribution == "gauss" else 2.0
    errors = [whole]
    for width in range(1, MOST + 1):
        step = 2 / 2**width
        errors.append(clipping_error(optimal_clip(distribution, step=step), distribution, step=step))
    return sum(s**2 * errors[width] for s, width in zip(spread, bits, strict=True)) / len(spread)
