"""Arithmetic: how an engine turns an integer accumulator into the integers of the next tensor, as a value."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FloatMultiplier:
    """q = rint(float32(acc) · m) + z with m = float32(float32(s_x · s_w) / s_y); ties to even.

    ONNX Runtime (MLAS), FBGEMM and XNNPACK.
    """


@dataclass(frozen=True, slots=True)
class FixedPoint:
    """m = m0 · 2^e with m0 an integer of 31 bits; q = (acc · m0) >> (31 - e), rounded once or twice.

    With `double_rounding`, as gemmlowp and the reference kernels of TensorFlow Lite do: first the high half of
    the doubled product, then a shift that rounds half away from zero (Jacob et al. 2018, section 2.2). Without,
    one shift that rounds half up.
    """

    double_rounding: bool = True


@dataclass(frozen=True, slots=True)
class Shift:
    """All scales are powers of two: q = acc >> k. Ties go up (half is added first), or to even."""

    half_even: bool = False


Requantize = FloatMultiplier | FixedPoint | Shift


@dataclass(frozen=True, slots=True)
class FusedRatios:
    """Add: rint(fma(q_a, r_a, fma(q_b, r_b, c))), r = s / s_y, c = z - fma(z_a, r_a, z_b · r_b): MLAS on AVX2."""


@dataclass(frozen=True, slots=True)
class WidenedSum:
    """Add: both operands times 2^`bits`, rescaled to 2 · max(s_a, s_b), summed, requantized: TensorFlow Lite."""

    bits: int = 20


@dataclass(frozen=True, slots=True)
class ThroughFloat:
    """Dequantize to float32, compute, divide by the output's scale, round: what the file says literally."""


@dataclass(frozen=True, slots=True)
class ThroughRequantize:
    """Compute with integers and requantize once, with the ratio of the scales as the multiplier."""


Add = FusedRatios | WidenedSum | ThroughFloat | ThroughRequantize
Rescale = ThroughFloat | ThroughRequantize


@dataclass(frozen=True, kw_only=True, slots=True)
class Arithmetic:
    """How an engine computes with integers.

    `pair_bits` is 16 where products of u8 and s8 are summed in pairs that saturate in 16 bits (x86 before VNNI),
    None where they are not. `average` is the rule of average pooling with a window, `global_average` that of
    the mean over the whole plane. `signed` says whether it has integer kernels for signed activations.
    """

    requantize: Requantize = FloatMultiplier()
    add: Add = FusedRatios()
    global_average: Rescale = ThroughRequantize()
    average: Rescale = ThroughFloat()
    concat: Rescale = ThroughFloat()
    accumulator_bits: int = 32
    pair_bits: int | None = None
    signed: bool = True


FLOAT32 = Arithmetic()
"""ONNX Runtime on x86 with VNNI: zero mismatches."""

FLOAT32_PAIRS = Arithmetic(pair_bits=16)
"""The same before VNNI (AVX2, AVX512): sums of pairs can saturate."""

GEMMLOWP = Arithmetic(
    requantize=FixedPoint(), add=WidenedSum(), average=ThroughRequantize(), concat=ThroughRequantize()
)
"""gemmlowp and the reference kernels of TensorFlow Lite."""

FIXED_POINT = Arithmetic(
    requantize=FixedPoint(double_rounding=False),
    add=WidenedSum(),
    average=ThroughRequantize(),
    concat=ThroughRequantize(),
)
"""A fixed-point multiplier that rounds once."""

SHIFT = Arithmetic(requantize=Shift(), add=ThroughRequantize(), average=ThroughRequantize(), concat=ThroughRequantize())
"""Scales that are powers of two: nothing but shifts."""
