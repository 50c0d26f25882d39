"""Forms: which ops a file for a target multiplies quantized weights with.

`widths` are those that weights with a scale per group can have in the file; others take the next larger one.
"""

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class DequantizeLinear:
    """Standard ops: weights behind a DequantizeLinear, which engines fuse into what follows."""

    widths: ClassVar[tuple[int, ...]] = (4, 8)


@dataclass(frozen=True, slots=True)
class MatMulInteger:
    """DynamicQuantizeLinear, MatMulInteger and a product with both scales: ONNX Runtime's DynamicQuantizeMatMul."""

    widths: ClassVar[tuple[int, ...]] = (8,)


@dataclass(frozen=True, slots=True)
class MatMulNBits:
    """`com.microsoft.MatMulNBits`, ONNX Runtime's product with packed weights of 2, 4 or 8 bits.

    At `accuracy_level` 4 its kernel rounds the activations to 8 bits, with a scale for each group of the weight's; at 0
    it computes in float32, many times slower at 2 and 8 bits (tools/bench_weight_only.py).
    """

    widths: ClassVar[tuple[int, ...]] = (2, 4, 8)
    accuracy_level: int = 4


Form = DequantizeLinear | MatMulInteger | MatMulNBits
