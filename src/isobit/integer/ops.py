"""Integer ops: from integers to integers. Formulas: those of ONNX Runtime's CPU kernels, each verified against it."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from isobit.core.arithmetic import (
    Arithmetic,
    CountInMultiplier,
    FixedPoint,
    FixedRatios,
    FloatMultiplier,
    FusedOffset,
    FusedRatios,
    InUnitsOfInput,
    NeonRatios,
    RoundedMean,
    Shift,
    ShiftedSum,
    ShortMean,
    ShortRatios,
    ThroughFloat,
    ThroughRequantize,
    WidenedSum,
)
from isobit.core.errors import UnsupportedError
from isobit.integer.requantize import (
    fixed_point,
    half_away,
    mantissa_and_exponent,
    multiplier,
    quantize,
    quantize_in_units,
    requantize,
    scaled,
    shift,
)
from isobit.integer.short import short_mean, short_sum
from isobit.integer.values import Format, Quantized
from isobit.integer.windows import Window, window_counts, window_sums

_ONE = np.ones((), np.float32)


def rescale(x: Quantized, output: Format, arithmetic: Arithmetic) -> Tensor:
    """The integers of `x` in another format: what Concat does with each of its inputs."""
    if x.format == output:
        return x.q
    if isinstance(arithmetic.concat, ThroughFloat):
        return quantize(x.floats, output)
    return requantize(x.centred.double(), _factor(arithmetic, x, output), arithmetic.requantize, output)


def add(a: Quantized, b: Quantized, output: Format, arithmetic: Arithmetic) -> Tensor:
    """Elementwise sum, with broadcasting. See `core.arithmetic` for the rules."""
    match arithmetic.add:
        case FusedRatios():
            return _add_fused(a, b, output)
        case NeonRatios():
            return _add_neon(a, b, output)
        case ShortRatios() if output.bits <= 8:
            return short_sum(a, b, output)
        case ShortRatios():
            return _add_widened(a, b, output, arithmetic, 15)
        case ThroughFloat():
            return quantize(a.floats + b.floats, output)
        case InUnitsOfInput():
            ratio = np.float32(a.format.scale) / np.float32(b.format.scale)
            return quantize_in_units(a.centred * float(ratio) + b.centred, np.float32(b.format.scale), output)
        case WidenedSum(bits=bits):
            return _add_widened(a, b, output, arithmetic, bits if output.bits <= 8 else 15)
        case FixedRatios(bits=bits):
            return _add_fixed(a, b, output, bits)
        case ThroughRequantize():
            if not isinstance(arithmetic.requantize, Shift):
                return quantize(a.floats + b.floats, output)
            exact = a.centred.double() * float(a.format.scale) + b.centred.double() * float(b.format.scale)
            factor = torch.tensor(1.0 / float(output.scale), dtype=torch.float64)
            v = shift(exact, factor, half_even=arithmetic.requantize.half_even)
            return (v + output.zero_point).clamp_(output.low, output.high).float()


def subtract(a: Quantized, b: Quantized, output: Format, arithmetic: Arithmetic) -> Tensor:
    """a - b as a + (-b), by the rule of Add."""
    opposite = Format(b.format.scale, -b.format.zero_point, -b.format.high, -b.format.low)
    return add(a, Quantized(-b.q, opposite), output, arithmetic)


def multiply(a: Quantized, b: Quantized, output: Format, arithmetic: Arithmetic) -> Tensor:
    """Elementwise product; the multiplier is that of s_a · s_b / s_y."""
    wide = output.bits > 8
    product = a.centred.double() * b.centred.double() if wide else a.centred * b.centred  # below 2^17: exact
    factor = multiplier(arithmetic.requantize, a.format.scale, np.asarray(b.format.scale), output.scale)
    if isinstance(arithmetic.multiply, FusedOffset):
        return (product * float(factor) + output.zero_point).round_().clamp_(output.low, output.high)
    return requantize(product, torch.from_numpy(factor), arithmetic.requantize, output)


def global_average(x: Quantized, output: Format, arithmetic: Arithmetic) -> Tensor:
    """Mean over the plane. MLAS: rint(float32(Σ (q - z)) · m) + z_y, m = float32(s_x / float32(s_y · n))."""
    axes = tuple(range(2, x.q.dim()))
    count = int(np.prod(x.q.shape[2:]))
    if isinstance(arithmetic.global_average, ThroughFloat):
        return quantize(x.floats.mean(axes, keepdim=True), output)
    raw = x.q.sum(axes, keepdim=True, dtype=torch.float64)
    if isinstance(arithmetic.global_average, InUnitsOfInput):
        mean = raw.float() / count
        return quantize_in_units(mean, np.float32(x.format.scale), output, zero_point=x.format.zero_point)
    if isinstance(arithmetic.global_average, ShiftedSum):
        ratio = np.float32(x.format.scale) / np.float32(output.scale) * (np.float32(1) / np.float32(count))
        offset = np.float32(output.zero_point) - np.float32(x.format.zero_point) * np.float32(count) * ratio
        return (raw.float() * float(ratio) + float(offset)).round_().clamp_(output.low, output.high)
    total = raw - x.format.zero_point * count
    if isinstance(arithmetic.requantize, FloatMultiplier):
        factor = np.float32(x.format.scale) / (np.float32(output.scale) * np.float32(count))
        return requantize(total, torch.tensor(factor), arithmetic.requantize, output)
    if isinstance(arithmetic.global_average, ShortMean):
        return short_mean(total, _factor(arithmetic, x, output) / count, output)
    if isinstance(arithmetic.global_average, CountInMultiplier):
        q = _counted_mean(total.to(torch.int64), _factor(arithmetic, x, output), count)
        return q.add_(output.zero_point).clamp_(output.low, output.high).float()
    return requantize(total, _factor(arithmetic, x, output) / count, arithmetic.requantize, output)


def average(x: Quantized, window: Window, output: Format, arithmetic: Arithmetic) -> Tensor:
    """Mean over a window. ONNX Runtime dequantizes, adds float32 in row order, divides, and rounds v / s + z."""
    counts = window_counts(x.q.shape, window)
    if isinstance(arithmetic.average, RoundedMean):
        if x.format != output:
            raise UnsupportedError("this arithmetic has average pooling within one scale and zero point alone")
        return half_away(window_sums(x.q.double(), window) / counts.double()).float()
    if isinstance(arithmetic.average, ThroughFloat):
        mean = window_sums(x.floats, window) / counts
        v = mean / float(output.scale) + output.zero_point
        return v.round_().clamp_(output.low, output.high)
    total = window_sums(x.centred.double(), window)
    factor = _factor(arithmetic, x, output) / counts.double()
    if isinstance(arithmetic.average, ShortMean):
        return short_mean(total, factor, output)
    if isinstance(arithmetic.requantize, Shift) and not bool((torch.frexp(factor)[0] == 0.5).all()):
        raise UnsupportedError("arithmetic by shifts needs average pooling windows of 2^k elements")
    return requantize(total, factor, arithmetic.requantize, output)


def look_up(x: Quantized, floats: Tensor, output: Format) -> Tensor:
    """f(x) through a table of all levels: `floats` holds f of the dequantized levels, in ascending order."""
    table = quantize(floats, output)
    return table[(x.q - x.format.low).to(torch.int64)]


def levels(x: Format) -> Tensor:
    """All levels of a format, dequantized; float32."""
    q = torch.arange(x.low, x.high + 1, dtype=torch.float32)
    return (q - x.zero_point) * float(x.scale)


def softmax(x: Quantized, axis: int, output: Format) -> Tensor:
    """ONNX Runtime's integer softmax: a float32 table of e^(s_x (q - max + shift)), sums in order, one division.

    y = floor(1 / s_y) · t / sum t, rounded, plus z_y. The rows are aligned to their largest level, so that the
    table does not depend on the data. Sums are taken one after the other, as the kernel does.
    """
    q = x.q.movedim(axis, -1)
    length = q.shape[-1]
    span = x.format.high - x.format.low
    biggest = np.float32(np.finfo(np.float32).max) / np.float32(length)
    reserve = max(0.0, float(np.log(np.float64(biggest))) - 5.0) / float(x.format.scale)
    index = np.arange(span + 1, dtype=np.float64)
    table = np.exp((index - span + reserve) * np.float64(x.format.scale)).astype(np.float32)
    aligned = (q - q.amax(-1, keepdim=True) + span).to(torch.int64)
    terms = torch.from_numpy(table)[aligned]
    total = torch.from_numpy(np.add.accumulate(terms.numpy(), axis=-1, dtype=np.float32)[..., -1:].copy())
    steps = float(np.floor(np.float32(1.0) / np.float32(output.scale)))
    y = ((terms * steps) / total).round_().add_(output.zero_point).clamp_(output.low, output.high)
    return y.movedim(-1, axis)


def logistic(x: Tensor) -> Tensor:
    """MLAS's sigmoid: a rational approximation of odd degree 9 over even degree 10, clamped to ±18, plus 1/2.

    Each step is one fused multiply-add; float64 arithmetic rounded to float32 reproduces it.
    """
    numerator = (4.37031012579801e-11, 1.15627324459942e-07, 6.08574864600143e-05, 8.51377133304701e-03,
                 2.48287947061529e-01)  # fmt: skip
    denominator = (6.10247389755681e-13, 5.76102136993427e-09, 6.29106785017040e-06, 1.70198817374094e-03,
                   1.16817656904453e-01, 9.93151921023180e-01)  # fmt: skip
    v = x.clamp(-18.0, 18.0)
    square = v * v
    p, q = (_horner(square, coefficients) for coefficients in (numerator, denominator))
    return ((v * p) / q + 0.5).clamp(0.0, 1.0)


def _horner(x: Tensor, coefficients: Sequence[float]) -> Tensor:
    total = torch.full_like(x, coefficients[0])
    for c in coefficients[1:]:
        total = _fma(x, total, torch.tensor(c, dtype=torch.float32))
    return total


def _fma(a: Tensor, b: Tensor | float, c: Tensor | float) -> Tensor:
    """a · b + c, rounded once to float32; the product of two float32 is exact in float64."""
    return (a.double() * b + c).float()


def _add_fused(a: Quantized, b: Quantized, output: Format) -> Tensor:
    ratio_a = np.float32(a.format.scale) / np.float32(output.scale)
    ratio_b = np.float32(b.format.scale) / np.float32(output.scale)
    za, zb = np.float64(a.format.zero_point), np.float32(b.format.zero_point)
    offset = np.float32(za * np.float64(ratio_a) + np.float64(np.float32(zb * ratio_b)))
    fixed = float(np.float32(np.float32(output.zero_point) - offset))
    # A spread operand goes into the constant first, with a product that is rounded on its own.
    if _is_spread(a.q, b.q):
        v = _fma(b.q, float(ratio_b), fixed + a.q * float(ratio_a))
    elif _is_spread(b.q, a.q):
        v = _fma(a.q, float(ratio_a), fixed + b.q * float(ratio_b))
    else:
        v = _fma(a.q, float(ratio_a), _fma(b.q, float(ratio_b), fixed).double())
    return v.round_().clamp_(output.low, output.high)


def _is_spread(x: Tensor, over: Tensor) -> bool:
    """Whether one element of `x` meets a run of elements of `over` along the innermost axis."""
    last = x.shape[-1] if x.dim() else 1
    return last == 1 and bool(over.dim()) and over.shape[-1] != 1


def _add_neon(a: Quantized, b: Quantized, output: Format) -> Tensor:
    """MLAS on Arm: 32-bit integers, or floats where the ratios of scales have no multipliers below 2^22."""
    ratios = [np.float32(x.format.scale / output.scale) for x in (a, b)]
    down = 22 - int(np.frexp(max(ratios))[1])
    m_a, m_b = (float(np.rint(np.float64(r) * 2.0**down)) for r in ratios)
    fits = 13 <= down <= 31 and min(ratios) >= 2.0**-14 and max(ratios) < 2.0**8 and max(m_a, m_b) < 2.0**22
    if not fits:
        product = (b.centred * float(b.format.scale)).double()
        total = (a.centred.double() * float(a.format.scale) + product).float() / float(output.scale)
        return (total + output.zero_point).round_().clamp_(output.low, output.high)
    acc = a.centred.double() * m_a + b.centred.double() * m_b  # below 2^31: exact
    v = (acc.abs() * 2.0**-down + 0.5).floor_() * acc.sign()
    return v.add_(output.zero_point).clamp_(output.low, output.high).float()


def _add_widened(a: Quantized, b: Quantized, output: Format, arithmetic: Arithmetic, bits: int) -> Tensor:
    double = not isinstance(arithmetic.requantize, FixedPoint) or arithmetic.requantize.double_rounding
    twice = 2.0 * max(float(a.format.scale), float(b.format.scale))
    first, second = (
        fixed_point(
            x.centred.to(torch.int64) << bits,
            torch.tensor(float(x.format.scale) / twice, dtype=torch.float64),
            double_rounding=double,
        )
        for x in (a, b)
    )
    total = first + second
    factor = torch.tensor(twice / (2.0**bits * float(output.scale)), dtype=torch.float64)
    v = fixed_point(total, factor, double_rounding=double) + output.zero_point
    return v.clamp(output.low, output.high).float()


def _add_fixed(a: Quantized, b: Quantized, output: Format, bits: int) -> Tensor:
    ratios = [np.float32(x.format.scale) / np.float32(output.scale) for x in (a, b)]
    places = bits - int(np.frexp(max(ratios))[1]) + 1
    total = torch.tensor(1 << (places - 1), dtype=torch.int64)
    for x, ratio in zip((a, b), ratios, strict=True):
        total = total + x.centred.to(torch.int64) * int(np.rint(np.ldexp(np.float64(ratio), places)))
    return ((total >> places) + output.zero_point).clamp_(output.low, output.high).float()


def _counted_mean(total: Tensor, factor: Tensor, count: int) -> Tensor:
    """total · factor / count, with the count divided out of the fixed-point multiplier."""
    m, e = mantissa_and_exponent(factor)
    places = min(count.bit_length() - 1, 32, 31 + int(e))
    return scaled(total, (m << places) // count, e - places)


def _factor(arithmetic: Arithmetic, x: Quantized, output: Format) -> Tensor:
    return torch.from_numpy(multiplier(arithmetic.requantize, x.format.scale, _ONE, output.scale))


def max_pool(q: Tensor, window: Window) -> Tensor:
    """Maximum over a window; padding never wins."""
    padded = F.pad(q, window.torch_pads(q.dim()), value=float("-inf"))
    pool = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}[len(window.kernel)]
    return pool(padded, window.kernel, window.strides, 0, window.dilations)
