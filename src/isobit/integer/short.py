"""Arithmetic with short multipliers: what Qualcomm's simulator of the Hexagon Tensor Processor computes.

No document says it: thresholds between levels were measured, and these are the formulas that reproduce them.
"""

from collections.abc import Sequence
from math import floor, log2

import torch
from torch import Tensor

from isobit.integer.values import Format, Quantized


def short_product(acc: Tensor, factor: Tensor, zero_point: int) -> Tensor:
    """acc · factor + zero_point with a float32 factor, as `ShortMultiplier` has it; float64, exact below 2^42.

    >>> short_product(torch.tensor([63.0, 64.0]), torch.tensor([1 / 118]), 0).tolist()
    [0.0, 1.0]
    """
    mantissa, exponent = torch.frexp(factor.to(torch.float64))
    m, e = (mantissa * 2.0**11 + 0.5).floor(), exponent.to(torch.float64) - 1
    m, e = torch.where(m == 2048, 1024.0, m), e + (m == 2048)
    k = (-e - 4).clamp(min=0)
    kept = ((acc.to(torch.float64) + _offset(zero_point, factor)) * 2.0**-k).floor()
    return (kept * m * 2.0 ** (e + k - 10) + 0.5).floor()


def halving(groups: int, channels: int, strides: Sequence[int], dilations: Sequence[int]) -> bool:
    """Whether another kernel takes a convolution: depthwise ones that halve their input, and those with strides and
    dilations along one axis."""
    depthwise = 1 < groups == channels and all(stride == 2 for stride in strides)
    return depthwise or any(s > 1 and d > 1 for s, d in zip(strides, dilations, strict=True))


def halving_product(acc: Tensor, factor: Tensor, output: Format) -> Tensor:
    """⌊(acc + ⌊z / m + 1/2⌋) · m + 1/2⌋ with a factor of 15 bits: the rule of that other kernel."""
    m = _bits(factor, 15)
    v = ((acc.to(torch.float64) + _offset(output.zero_point, factor)) * m + 0.5).floor()
    return v.clamp_(output.low, output.high).float()


def short_sum(a: Quantized, b: Quantized, output: Format) -> Tensor:
    """Add, as `ShortRatios` has it."""
    ratios = [float(x.format.scale) / float(output.scale) for x in (a, b)]
    places = min(15, 13 - floor(log2(sum(ratios))))
    m_a, m_b = (round(ratio * 2.0**places) for ratio in ratios)  # half to even; exact in float64
    fixed = output.zero_point * 2.0**places - a.format.zero_point * m_a - b.format.zero_point * m_b
    fixed = round(fixed / 256) * 256
    v = ((a.q.double() * m_a + b.q.double() * m_b + fixed) * 2.0**-places + 0.5).floor()
    return v.clamp_(output.low, output.high).float()


def short_mean(total: Tensor, factor: Tensor, output: Format) -> Tensor:
    """The mean of a `total` of q - z, as `ShortMean` has it: `factor` is s_x / (s_y · n)."""
    return ((total * _bits(factor, 15) + 0.5).floor() + output.zero_point).clamp_(output.low, output.high).float()


def _bits(factor: Tensor, bits: int) -> Tensor:
    """A factor rounded to so many bits, half up; float64."""
    mantissa, exponent = torch.frexp(factor.to(torch.float64))
    return (mantissa * 2.0**bits + 0.5).floor() * 2.0 ** (exponent.to(torch.float64) - bits)


def _offset(zero_point: int, factor: Tensor) -> Tensor:
    """z / m, divided in float32, half up."""
    m = factor.to(torch.float32)
    return ((torch.full_like(m, zero_point) / m).to(torch.float64) + 0.5).floor()  # `z / m` would multiply by 1 / m
