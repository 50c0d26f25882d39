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

    Results of 16 bits, whose accumulators have 64, take m0 rounded to 15 bits and one shift that rounds half up, as
    TensorFlow Lite does: |acc| stays below 2^47.
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

    With `reciprocals` the factor is 1 / float32((1 / s_x) · (1 / s_w)), each in float32, and a convolution rounds
    product and bias once, a matrix product twice: ncnn, whose files hold 1 / s. With `stepwise` there are two products,
    first with s_x, then with s_w: PyTorch's calls of oneDNN.
    """

    reciprocals: bool = False
    stepwise: bool = False


@dataclass(frozen=True, slots=True)
class ShortMultiplier:
    """q = ⌊⌊(acc + ⌊z / m + 1/2⌋) / 2^k⌋ · m0 · 2^(e + k - 10) + 1/2⌋, m rounded to m0 · 2^(e - 10), m0 of 11 bits.

    m = float32(float32(s_x · s_max) / s_y) · float32(s_w / s_max), s_max the largest scale of the weight's channels.
    k = max(0, -e - 4): four bits behind the point of the result are kept, the lower ones are cut
    off. Measured on Qualcomm's simulator of the Hexagon Tensor Processor.
    """


Requantize = FloatMultiplier | FixedPoint | Shift | ShortMultiplier | ThroughFloat


@dataclass(frozen=True, slots=True)
class Division:
    """QuantizeLinear: rint(x / s) + z, a true division."""


@dataclass(frozen=True, slots=True)
class FusedScale:
    """QuantizeLinear: rint(fma(x, 255 / (high - low), (-low · 255) / (high - low))), low and high the range's ends."""


@dataclass(frozen=True, slots=True)
class InverseOfInverse:
    """Behind a product: rint(x · (1 / (1 / k))) + z, k = 255 / (high - low), if z is the lowest level; else FusedScale.

    OpenVINO hands oneDNN the reciprocal of a scale, and oneDNN takes that one's. Signed tensors inside of a network are
    unsigned ones there, with a zero point of 128; a signed output of a file leaves FusedScale's offset out.
    """


@dataclass(frozen=True, slots=True)
class Reciprocal:
    """QuantizeLinear: rint(x · float32(1 / s)) + z: XNNPACK."""


@dataclass(frozen=True, slots=True)
class OffsetInside:
    """Behind a product: rint(x · float32(1 / s) + z): oneDNN."""


@dataclass(frozen=True, slots=True)
class HalfAway:
    """QuantizeLinear: x / s rounded half away from zero, plus z: LiteRT's reference kernels."""


@dataclass(frozen=True, slots=True)
class ReciprocalAway:
    """QuantizeLinear: v = x · float32(1 / s), then v + sign(v) / 2 in float32, cut off towards zero: ncnn."""


Quantize = Division | FusedScale | InverseOfInverse | Reciprocal | OffsetInside | HalfAway | ReciprocalAway


@dataclass(frozen=True, slots=True)
class FusedRatios:
    """Add: rint(fma(q_a, r_a, fma(q_b, r_b, c))), r = s / s_y, c = z - fma(z_a, r_a, z_b · r_b): MLAS on AVX2."""


@dataclass(frozen=True, slots=True)
class NeonRatios:
    """Add: ((q_a - z_a) · m_a + (q_b - z_b) · m_b) >> k, half away from zero, + z: MLAS on Arm.

    m = rint(s / s_y · 2^k), k = 21 - e, where 2^e is the highest power of two in the larger ratio of scales. Where an m
    is 2^22, or a ratio below 2^-14 or from 2^8 on: rint(fma(q_a - z_a, s_a, (q_b - z_b) · s_b) / s_y + z).
    """


@dataclass(frozen=True, slots=True)
class WidenedSum:
    """Add: both operands times 2^`bits`, rescaled to 2 · max(s_a, s_b), summed, requantized: TensorFlow Lite.

    Operands of 16 bits are multiplied by 2^15.
    """

    bits: int = 20


@dataclass(frozen=True, slots=True)
class FixedRatios:
    """Add: (q_a · m_a + q_b · m_b + c) >> k, half up, m = rint(s / s_y · 2^k), the larger m of `bits` + 1 bits.

    c takes off the zero points and adds half. XNNPACK.
    """

    bits: int = 20


@dataclass(frozen=True, slots=True)
class RoundedMean:
    """Average pooling within one format: Σ q / n, half away from zero, of the integers as they are: LiteRT."""


@dataclass(frozen=True, slots=True)
class CountInMultiplier:
    """Global average: the multiplier m0 · 2^e of s_x / s_y becomes ⌊m0 · 2^k / n⌋ · 2^(e - k), k = ⌊log2 n⌋.

    LiteRT's reference kernels.
    """


@dataclass(frozen=True, slots=True)
class ShiftedSum:
    """Global average: rint(float32(Σ q) · m + b), m = (s_x / s_y) · (1 / n), b = z_y - (z_x · n) · m: XNNPACK."""


@dataclass(frozen=True, slots=True)
class FusedOffset:
    """Mul: rint(float32(p · m) + z), the zero point added before rounding: MLAS."""


@dataclass(frozen=True, slots=True)
class ByteFactor:
    """From one format to another: ((q - z) · m + 128) >> 8, plus z_y, with m = rint(256 · s / s_y): XNNPACK."""


@dataclass(frozen=True, slots=True)
class MlasTables:
    """Sigmoid, Softmax and LeakyRelu as ONNX Runtime computes them."""


@dataclass(frozen=True, slots=True)
class LiteRtTables:
    """Sigmoid, Tanh and Gelu by a table of the rounded function, Softmax by one of e^x, HardSwish in 16 bits.

    LeakyRelu by two factors of the rule `convert`. LiteRT, both sets of kernels.
    """


@dataclass(frozen=True, slots=True)
class ThroughRequantize:
    """Compute with integers and requantize once, with the ratio of the scales as the multiplier."""


@dataclass(frozen=True, slots=True)
class ShortRatios:
    """Add: (q_a · m_a + q_b · m_b + c + 2^(k - 1)) >> k, m = rint(s / s_y · 2^k).

    k = min(15, 13 - ⌊log2((s_a + s_b) / s_y)⌋), and c = z_y · 2^k - z_a · m_a - z_b · m_b, rounded to a multiple of
    256. Measured on Qualcomm's HTP simulator.
    """


@dataclass(frozen=True, slots=True)
class ShortMean:
    """Average: Σ (q - z) · m >> k, half up, + z_y; m of 15 bits is s_x / (s_y · n) · 2^k. Qualcomm's HTP simulator."""


@dataclass(frozen=True, slots=True)
class InUnitsOfInput:
    """Levels in units of an input's scale s: rint(fma(v, k, c)) + low, with low' = float32((low - z_y) · s_y) / s.

    k = (high - low) / (high' - low') and c = -low' · (high - low) / (high' - low') - z · k in float32, z a zero point
    that v still has. Add: v = (q_a - z_a) · (s_a / s_b) + (q_b - z_b), s = s_b. Global average: v = Σ q / n. OpenVINO.
    """


Rescale = ThroughFloat | ThroughRequantize
Add = FusedRatios | WidenedSum | FixedRatios | NeonRatios | ShortRatios | InUnitsOfInput | Rescale
Convert = ThroughFloat | ByteFactor | FixedPoint
Tables = MlasTables | LiteRtTables


@dataclass(frozen=True, kw_only=True, slots=True)
class Arithmetic:
    """How an engine computes with integers.

    `pair_bits` is 16 where products of u8 and s8 are summed in pairs that saturate in 16 bits, None where they are not;
    `older_pair_bits` is that of the same engine on x86 before VNNI (AVX2, AVX-512), where it has one. `average` is the
    rule of average pooling with a window, `global_average` that of the mean over the whole plane. `matmul` is the
    rule of products of matrices where it is not `requantize`. `clamps` says that any Relu or Clip behind an op is
    carried out on its integers; without it, one that cuts off levels stays a float op. `any_rank` says that a
    product of more than two dimensions takes its bias into the integer sum. `signed` says whether it has integer
    kernels for signed activations, `twins` that it rewrites those as unsigned ones, 128 higher, first.
    `quantize_products` is the rule of a quantizer that a convolution or a linear layer takes into its own kernel,
    where it is not `quantize`. `convert` is the rule of a QuantizeLinear that reads integers of another format,
    `tables` that of functions of one element; `more` are ops with integer kernels that ONNX Runtime has none for.
    `adds_in_convolution` says that a convolution takes the Add behind it and drops the rounding between the two
    (`isobit.integer.residual`), `widest` up to how many bits it has integer kernels at all, and `wide` how those of
    more than 8 compute, where that differs.
    """

    requantize: Requantize = FloatMultiplier()
    quantize: Quantize = Division()
    quantize_products: Quantize | None = None
    add: Add = FusedRatios()
    multiply: FusedOffset | ThroughRequantize = FusedOffset()
    matmul: Requantize | None = None
    global_average: Rescale | CountInMultiplier | ShiftedSum | ShortMean | InUnitsOfInput = ThroughRequantize()
    average: Rescale | RoundedMean | ShortMean = ThroughFloat()
    concat: Rescale = ThroughFloat()
    convert: Convert = ThroughFloat()
    tables: Tables = MlasTables()
    more: frozenset[str] = frozenset()
    accumulator_bits: int = 32
    pair_bits: int | None = None
    older_pair_bits: int | None = None
    clamps: bool = False
    any_rank: bool = False
    signed: bool = True
    twins: bool = True
    adds_in_convolution: bool = False
    widest: int = 8
    wide: "Arithmetic | None" = None

    def of(self, bits: int) -> "Arithmetic":
        """The rules for results of that many bits."""
        return self.wide if self.wide is not None and bits > 8 else self

    def rounds_floats(self, op: str) -> bool:
        """Whether the engine rounds the float result of an op, of one of ONNX's names, and not its integers."""
        rule = {"Add": self.add, "GlobalAveragePool": self.global_average}.get(op, self.requantize)
        return isinstance(self.requantize, ThroughFloat) and isinstance(rule, ThroughFloat)

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

FLOAT32_NEON = Arithmetic(add=NeonRatios())
"""ONNX Runtime on Arm64: zero mismatches, under emulation."""

_INTEGERS = Arithmetic(
    multiply=ThroughRequantize(),
    average=ThroughRequantize(),
    concat=ThroughRequantize(),
    clamps=True,
    twins=False,
)

GEMMLOWP = replace(_INTEGERS, requantize=FixedPoint(), add=WidenedSum())
"""gemmlowp: multipliers of 31 bits, rounded twice."""

FIXED_POINT = replace(_INTEGERS, requantize=FixedPoint(double_rounding=False), add=WidenedSum())
"""A fixed-point multiplier that rounds once."""

SHIFT = replace(_INTEGERS, requantize=Shift(), add=ThroughRequantize())
"""Scales that are powers of two: nothing but shifts."""

XNNPACK = replace(
    _INTEGERS,
    quantize=Reciprocal(),
    add=FixedRatios(),
    global_average=ShiftedSum(),
    average=RoundedMean(),
    any_rank=True,
)
"""LiteRT's default on CPUs: float multipliers, but for Add. Measured: no mismatch."""

EXECUTORCH = replace(XNNPACK, average=ThroughFloat())
"""ExecuTorch's XNNPACK: the same kernels; averages over windows stay in float. Measured: no mismatch, but
for a step in one of 25,000 means over 169 pixels."""

INDUCTOR = Arithmetic(
    requantize=ThroughFloat(stepwise=True),
    quantize=Reciprocal(),
    quantize_products=OffsetInside(),
    add=ThroughFloat(),
    global_average=ThroughFloat(),
    concat=ThroughFloat(),
    clamps=True,
    twins=False,
    older_pair_bits=16,
)
"""PyTorch's compiler on x86: what a PT2E program says literally, but for oneDNN's products. Measured: no mismatch in 16
million results of convolutions and linear layers."""

WIDE_FIXED_POINT = replace(FIXED_POINT, accumulator_bits=64, widest=16)
"""The same with integers of up to 16 bits, summed in 64."""

_LITERT_OPS = frozenset({"Clip", "Gelu", "HardSwish", "Max", "Min", "Pad", "ReduceMean", "Relu", "Sub", "Tanh"})

_LITERT_WIDE = replace(
    WIDE_FIXED_POINT, quantize=HalfAway(), average=RoundedMean(), any_rank=True, convert=FixedPoint(), more=_LITERT_OPS
)

LITERT = replace(XNNPACK, convert=ByteFactor(), tables=LiteRtTables(), more=_LITERT_OPS, widest=16, wide=_LITERT_WIDE)
"""LiteRT's default: XNNPACK, and LiteRT's own kernels where XNNPACK has none."""

LITERT_REFERENCE = replace(
    GEMMLOWP,
    quantize=HalfAway(),
    matmul=FixedPoint(double_rounding=False),
    global_average=CountInMultiplier(),
    average=RoundedMean(),
    any_rank=True,
    convert=FixedPoint(),
    tables=LiteRtTables(),
    more=_LITERT_OPS,
    widest=16,
    wide=_LITERT_WIDE,
)
"""LiteRT's reference kernels. Measured: no mismatch."""

HEXAGON = replace(
    WIDE_FIXED_POINT, requantize=ShortMultiplier(), add=ShortRatios(), global_average=ShortMean(), average=ShortMean()
)
"""Qualcomm's Hexagon Tensor Processor. Measured on its simulator with 8 bits: no mismatch in ResNet-20; in MobileNetV2
one convolution a step off, in few values. Depthwise convolutions with strides of 2 have a rule of their own. Mul and
Softmax are not reproduced."""

WIDE_SHIFT = replace(SHIFT, accumulator_bits=64, widest=16)
"""Shifts, with integers of up to 16 bits, summed in 64."""

OPENVINO = Arithmetic(
    requantize=ThroughFloat(),
    quantize=FusedScale(),
    quantize_products=InverseOfInverse(),
    add=InUnitsOfInput(),
    global_average=InUnitsOfInput(),
    multiply=ThroughRequantize(),
    concat=ThroughFloat(),
    clamps=True,
    twins=False,
    adds_in_convolution=True,
    older_pair_bits=16,
)
"""OpenVINO's CPU plugin. Measured: no mismatch in 16 million results of convolutions (depthwise too, with and without
Relu), nor in 100 million of a convolution and a residual in front of a Relu, in global averages or Adds of two
tensors; but for signed results of a few scales, up to 20 in a million, and Adds with zero points. Padded windows of
AveragePool with `count_include_pad` are not reproduced."""

NCNN = replace(
    OPENVINO, requantize=ThroughFloat(reciprocals=True), quantize=ReciprocalAway(), quantize_products=None,
    add=ThroughFloat(), global_average=ThroughFloat(), adds_in_convolution=False, older_pair_bits=None,
)  # fmt: skip
"""ncnn on x86 with VNNI. Measured: no mismatch in convolutions and inner products. Its depthwise convolutions take an
approximate reciprocal as their scale, another one on other processors, and are not reproduced."""
