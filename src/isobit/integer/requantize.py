"""Requantization: from the exact integers of an accumulator to the integers of the next tensor."""

import numpy as np
import torch
from torch import Tensor

from isobit.core.arithmetic import (
    Division,
    FixedPoint,
    FloatMultiplier,
    FusedScale,
    HalfAway,
    InverseOfInverse,
    OffsetInside,
    Quantize,
    Reciprocal,
    ReciprocalAway,
    Requantize,
    Shift,
    ShortMultiplier,
    ThroughFloat,
)
from isobit.core.errors import UnsupportedError
from isobit.integer.short import short_product
from isobit.integer.values import Format

_DIVISION = Division()


def multiplier(rule: Requantize, x_scale: np.float32, w_scale: np.ndarray, y_scale: np.float32) -> np.ndarray:
    """s_x · s_w / s_y as the engine computes it: in float32 step by step, or in float64. Shape of `w_scale`.

    >>> multiplier(FloatMultiplier(), np.float32(0.1), np.float32([0.3]), np.float32(0.7)).dtype
    dtype('float32')
    """
    if isinstance(rule, FloatMultiplier):
        return np.asarray((np.float32(x_scale) * w_scale.astype(np.float32)) / np.float32(y_scale), dtype=np.float32)
    if isinstance(rule, ShortMultiplier):
        largest = w_scale.max().astype(np.float32)
        shared = np.float32(np.float32(x_scale) * largest) / np.float32(y_scale)
        return np.asarray(shared * (w_scale.astype(np.float32) / largest), dtype=np.float32)
    return np.asarray(np.float64(x_scale) * w_scale.astype(np.float64) / np.float64(y_scale))


def requantize(acc: Tensor, factor: Tensor, rule: Requantize, output: Format) -> Tensor:
    """The integers of the output: round(acc · factor) + z, clipped to the levels; float32.

    `acc` holds exact integers as float32 (below 2^24), float64 or int64; `factor` broadcasts against it.
    """
    low, high = output.low - output.zero_point, output.high - output.zero_point
    match rule:
        case FloatMultiplier():
            v = _as_float32(acc) * factor.to(torch.float32)
            return v.clamp_(low, high).round_().add_(output.zero_point)
        case ShortMultiplier() if output.bits <= 8:
            v = short_product(acc, factor, output.zero_point) - output.zero_point
        case FixedPoint() | ShortMultiplier() if output.bits > 8:
            v = wide_fixed_point(acc, factor)
        case FixedPoint(double_rounding=double):
            v = fixed_point(acc, factor, double_rounding=double)
        case Shift(half_even=half_even):
            v = shift(acc, factor, half_even=half_even)
        case ThroughFloat():
            raise UnsupportedError("this arithmetic rounds floats, never an accumulator: use quantize")
    return v.clamp(low, high).add_(output.zero_point).to(torch.float32)


def fixed_point(acc: Tensor, factor: Tensor, *, double_rounding: bool) -> Tensor:
    """acc · factor with factor = m · 2^(e - 31), 2^30 <= m < 2^31; int64.

    Double rounding is gemmlowp's SaturatingRoundingDoublingHighMul (half away from zero) followed by
    RoundingDivideByPOT (half away from zero); a left shift, where e > 0, comes first. Single rounding adds half
    and shifts once.
    """
    m, e = mantissa_and_exponent(factor)
    return scaled(_as_int64(acc), m, e, double_rounding=double_rounding)


def mantissa_and_exponent(factor: Tensor) -> tuple[Tensor, Tensor]:
    """m and e of factor = m · 2^(e - 31), 2^30 <= m < 2^31; int64. Below 2^-32, a dead channel, m is 0."""
    mantissa, exponent = torch.frexp(factor.to(torch.float64))
    m = (mantissa * 2.0**31).round().to(torch.int64)
    e = exponent.to(torch.int64) + (m == 1 << 31)
    m = torch.where(m == 1 << 31, m >> 1, m)
    return torch.where(e < -31, 0, m), torch.where(e < -31, 0, e)


def scaled(acc: Tensor, m: Tensor, e: Tensor, *, double_rounding: bool = True) -> Tensor:
    """acc · m · 2^(e - 31), rounded as `fixed_point` says; int64."""
    if not double_rounding:
        right = 31 - e
        if int(right.min()) < 1 or int(right.max()) > 62:
            raise UnsupportedError("a multiplier outside 2^-31 .. 2^30 has no fixed-point form")
        return (acc * m + (torch.ones_like(right) << (right - 1))) >> right
    right = (-e).clamp(min=0)
    product = (acc << e.clamp(min=0)) * m
    nudged = product + torch.where(product >= 0, 1 << 30, 1 - (1 << 30))
    high = torch.where(nudged >= 0, nudged >> 31, -((-nudged) >> 31))
    mask = (torch.ones_like(right) << right) - 1
    threshold = (mask >> 1) + (high < 0)
    return (high >> right) + ((high & mask) > threshold)


def wide_fixed_point(acc: Tensor, factor: Tensor) -> Tensor:
    """acc · factor with factor = m · 2^(e - 15), m of 15 bits, and one shift that rounds half up; int64.

    TensorFlow Lite's MultiplyByQuantizedMultiplier for accumulators of 64 bits, which have to stay below 2^47.
    """
    mantissa, exponent = torch.frexp(factor.to(torch.float64))
    m31, e = (mantissa * 2.0**31).round().to(torch.int64), exponent.to(torch.int64)
    m = ((m31 + (1 << 15)) >> 16).clamp(max=(1 << 15) - 1)
    right = 15 - e
    if int(right.min()) < 1 or int(right.max()) > 62:
        raise UnsupportedError("a multiplier outside 2^-47 .. 2^14 has no fixed-point form")
    acc = _as_int64(acc)
    if int(acc.abs().max()) >= 1 << 47:
        raise UnsupportedError("an accumulator of 64 bits with a value of 2^47 or more has no fixed-point form")
    return (acc * m + (torch.ones_like(right) << (right - 1))) >> right


def shift(acc: Tensor, factor: Tensor, *, half_even: bool) -> Tensor:
    """acc · 2^-k, ties up or to even; float64, exact. Raises UnsupportedError where `factor` is no power of two."""
    mantissa, _ = torch.frexp(factor.to(torch.float64))
    if not bool((mantissa == 0.5).all()):
        raise UnsupportedError(
            "arithmetic by shifts needs scales that are powers of two: give the scheme scale=PowerOfTwo()"
        )
    v = acc.to(torch.float64) * factor.to(torch.float64)
    return v.round_() if half_even else v.add_(0.5).floor_()


def quantize(x: Tensor, output: Format, rule: Quantize = _DIVISION) -> Tensor:
    """QuantizeLinear, clipped: rint(x / s) + z, or one fused product and sum. NaN becomes the lowest level."""
    if isinstance(rule, (FusedScale, InverseOfInverse)):
        low, high = (np.float32(np.float32(q - output.zero_point) * output.scale) for q in (output.low, output.high))
        width, steps = np.float32(high - low), np.float32(output.high - output.low)
        slope, offset = np.float32(steps / width), np.float32(np.float32(-low * steps) / width)
        if isinstance(rule, InverseOfInverse) and output.zero_point == output.low:
            one = np.float32(1)
            v = torch.nan_to_num(x * float(one / (one / slope)), nan=float("-inf"))
            return v.round_().add_(output.zero_point).clamp_(output.low, output.high)
        v = (x.double() * float(slope) + float(offset)).float()
        return torch.nan_to_num(v, nan=float("-inf")).round_().add_(output.low).clamp_(output.low, output.high)
    x = x.to(torch.float32)
    if isinstance(rule, OffsetInside):
        v = (x * float(np.float32(1) / output.scale)).add_(output.zero_point)
        return torch.nan_to_num(v, nan=float("-inf")).round_().clamp_(output.low, output.high)
    inverse = isinstance(rule, (Reciprocal, ReciprocalAway))
    v = x * float(np.float32(1) / output.scale) if inverse else x / float(output.scale)
    v = torch.nan_to_num(v, nan=float("-inf"), posinf=float("inf"), neginf=float("-inf"))
    v = v.clamp_(output.low - output.zero_point, output.high - output.zero_point)
    if isinstance(rule, ReciprocalAway):
        v = (v + torch.copysign(torch.full_like(v, 0.5), v)).trunc()
    else:
        v = half_away(v) if isinstance(rule, HalfAway) else v.round_()
    return v.add_(output.zero_point)


def quantize_in_units(
    v: Tensor, unit: np.float32, output: Format, *, zero_point: int = 0, product: bool = False
) -> Tensor:
    """Round a float32 that counts steps of `unit` from `zero_point`; see `InUnitsOfInput`.

    A `product` of a convolution is rounded as `InverseOfInverse` where no offset is added.
    """
    steps = np.float32(output.high - output.low)
    low, high = (
        np.float32(np.float32(np.float32(q - output.zero_point) * output.scale) / unit)
        for q in (output.low, output.high)
    )
    slope = steps / np.float32(high - low)
    offset = np.float32(-low * steps) / np.float32(high - low) - np.float32(zero_point) * slope
    if product and output.zero_point == output.low:
        slope = np.float32(1) / (np.float32(1) / slope)
    rounded = (v.double() * float(slope) + float(offset)).float().round_()
    return rounded.add_(output.low).clamp_(output.low, output.high)


def half_away(v: Tensor) -> Tensor:
    """Rounded to the nearest integer, ties away from zero. Exact for |v| < 2^22, where v + 1/2 has a float32."""
    whole = v.trunc()
    return whole + v.sign() * ((v - whole).abs() >= 0.5)


def wrap32(acc: Tensor) -> Tensor:
    """What an int32 register holds after `acc`, int64, was added up in it."""
    return ((acc + (1 << 31)) & 0xFFFFFFFF) - (1 << 31)


def _as_float32(acc: Tensor) -> Tensor:
    return acc.to(torch.float32)  # from float64 and int64 this rounds to nearest even, as cvtdq2ps does


def _as_int64(acc: Tensor) -> Tensor:
    return acc.round().to(torch.int64) if acc.is_floating_point() else acc
