"""Arithmetic: how an engine turns an integer accumulator into the integers of the next tensor, as a value."""

from dataclasses import dataclass, replace


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


@dataclass(frozen=True, slots=True)
class ThroughFloat:
    """Dequantize to float32, compute, quantize: what the file says literally.

    As a rule of requantization: sums of products are exact integers, dequantized by one product with
    float32(s_x · s_w), to which the float32 bias is added; all that follows is float32. OpenVINO.
    """


Requantize = FloatMultiplier | FixedPoint | Shift | ThroughFloat


@dataclass(frozen=True, slots=True)
class Division:
    """QuantizeLinear: rint(x / s) + z, a true division."""


@dataclass(frozen=True, slots=True)
class FusedScale:
    """QuantizeLinear: rint(fma(x, 255 / (high - low), (-low · 255) / (high - low))), low and high the range's ends."""


Quantize = Division | FusedScale


@dataclass(frozen=True, slots=True)
class FusedRatios:
    """Add: rint(fma(q_a, r_a, fma(q_b, r_b, c))), r = s / s_y, c = z - fma(z_a, r_a, z_b · r_b): MLAS on AVX2."""


@dataclass(frozen=True, slots=True)
class FixedRatios:
    """Add: ((q_a - z_a) · m_a + (q_b - z_b) · m_b) >> k, half away from zero, + z: MLAS on Arm.

    m = rint(s / s_y · 2^k), k = 21 - e, where 2^e is the highest power of two in the larger ratio of scales. Where an m
    is 2^22, or a ratio below 2^-14 or from 2^8 on: rint(fma(q_a - z_a, s_a, (q_b - z_b) · s_b) / s_y + z).
    """


@dataclass(frozen=True, slots=True)
class WidenedSum:
    """Add: both operands times 2^`bits`, rescaled to 2 · max(s_a, s_b), summed, requantized: TensorFlow Lite."""

    bits: int = 20


@dataclass(frozen=True, slots=True)
class ThroughRequantize:
    """Compute with integers and requantize once, with the ratio of the scales as the multiplier."""


Add = FusedRatios | FixedRatios | WidenedSum | ThroughFloat | ThroughRequantize
Rescale = ThroughFloat | ThroughRequantize


@dataclass(frozen=True, kw_only=True, slots=True)
class Arithmetic:
    """How an engine computes with integers.

    `pair_bits` is 16 where products of u8 and s8 are summed in pairs that saturate in 16 bits, None where they are not;
    `older_pair_bits` is that of the same engine on x86 before VNNI (AVX2, AVX-512), where it has one. `average` is the
    rule of average pooling with a window, `global_average` that of the mean over the whole plane. `signed` says whether
    it has integer kernels for signed activations.
    """

    requantize: Requantize = FloatMultiplier()
    quantize: Quantize = Division()
    add: Add = FusedRatios()
    global_average: Rescale = ThroughRequantize()
    average: Rescale = ThroughFloat()
    concat: Rescale = ThroughFloat()
    accumulator_bits: int = 32
    pair_bits: int | None = None
    older_pair_bits: int | None = None
    signed: bool = True

    @property
    def before_vnni(self) -> "Arithmetic":
        """The same engine on x86 before VNNI."""
        return replace(self, pair_bits=self.older_pair_bits)


FLOAT32 = Arithmetic()
"""Float multipliers, and registers that hold what comes."""

FLOAT32_VNNI = Arithmetic(older_pair_bits=16)
"""ONNX Runtime on x86 with VNNI: zero mismatches."""

FLOAT32_PAIRS = FLOAT32_VNNI.before_vnni
"""The same before VNNI (AVX2, AVX512): sums of pairs can saturate."""

FLOAT32_NEON = Arithmetic(add=FixedRatios())
"""ONNX Runtime on Arm64: zero mismatches, under emulation."""

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

OPENVINO = Arithmetic(
    requantize=ThroughFloat(),
    quantize=FusedScale(),
    add=ThroughFloat(),
    global_average=ThroughFloat(),
    concat=ThroughFloat(),
    older_pair_bits=16,
)
"""OpenVINO's CPU plugin. Measured against it: no mismatch in 16 million results of convolutions (depthwise too, with
and without Relu); a step in 2 to 4 of a million where a convolution takes a residual, in 20 of a million in an Add of
two quantized tensors. Padded windows of AveragePool with `count_include_pad` are not reproduced."""
