"""Functions of one element, and changes of format, as LiteRT computes them on bytes; each verified against it."""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from isobit.core.arithmetic import Arithmetic, ByteFactor, FixedPoint
from isobit.integer.model import Node
from isobit.integer.requantize import fixed_point, mantissa_and_exponent, quantize
from isobit.integer.values import Format, Quantized


def converted(x: Quantized, output: Format, arithmetic: Arithmetic) -> Tensor:
    """The integers of `x` in another format: what a QuantizeLinear does with them."""
    if x.format == output:
        return x.q
    match arithmetic.convert:
        case ByteFactor():
            return _shifted(x.centred * _byte_factor(x, output), output)
        case FixedPoint(double_rounding=double):
            return requantized(x, output, double_rounding=double)
        case _:
            return quantize(x.floats, output, arithmetic.quantize)


def requantized(x: Quantized, output: Format, *, double_rounding: bool = True) -> Tensor:
    """round((q - z) · s / s_y) + z_y with a fixed-point multiplier: what a RELU of its own does too."""
    factor = torch.tensor(float(x.format.scale) / float(output.scale), dtype=torch.float64)
    v = fixed_point(x.centred.to(torch.int64), factor, double_rounding=double_rounding)
    return (v + output.zero_point).clamp_(output.low, output.high).float()


def leaky_relu(x: Quantized, slope: np.float32, output: Format, arithmetic: Arithmetic) -> Tensor:
    """Two factors, s / s_y above zero and that times the slope below."""
    if isinstance(arithmetic.convert, ByteFactor):
        lower = torch.round(torch.tensor(256 * float(slope * np.float32(x.format.scale / output.scale))))
        return _shifted(torch.where(x.centred >= 0, x.centred * _byte_factor(x, output), x.centred * lower), output)
    ratio = float(x.format.scale) / float(output.scale)
    above, below = (
        fixed_point(x.centred.to(torch.int64), torch.tensor(f, dtype=torch.float64), double_rounding=True)
        for f in (ratio, float(x.format.scale) * float(slope) / float(output.scale))
    )
    v = torch.where(x.centred >= 0, above, below)
    return (v + output.zero_point).clamp_(output.low, output.high).float()


def hard_swish(x: Quantized, output: Format) -> Tensor:
    """x · relu6(x + 3) / 6 in 16 bits, 7 of them behind the point: TensorFlow Lite's fixed-point kernel."""
    fine = np.float32(np.float32(1 / 128) * x.format.scale)
    gate_m, gate_e = _sixteen_bits(np.float32(fine / np.float32(3 / 32768)))
    out_m, out_e = _sixteen_bits(np.float32(fine / output.scale))
    v = x.centred.to(torch.int64) << 7
    gate = _in_16_bits(v << max(gate_e - 1, 0))
    gate = _in_16_bits(_rounded_high(gate, gate_m) << int(gate_e > 0))
    gate = (_halved(gate, max(-gate_e, 0)) + (1 << 15)) >> 1
    product = gate * _rounded_high(v, out_m)
    high = torch.where(product >= 0, product >> 15, -((-product) >> 15))
    y = _halved(high, max(-out_e, 0)) << max(out_e, 0)
    return (y + output.zero_point).clamp_(output.low, output.high).float()


def softmax(x: Quantized, axis: int, output: Format) -> Tensor:
    """t = e^(s (q - max)) from a float32 table, float32 sums in order, ⌊t · (1 / (Σ t · s_y)) + 1/2⌋ + z_y."""
    q = x.q.movedim(axis, -1)
    steps = np.arange(x.format.high - x.format.low + 1, dtype=np.float32) * np.float32(-x.format.scale)
    table = torch.from_numpy(np.exp(steps.astype(np.float64)).astype(np.float32))
    terms = table[(q.amax(-1, keepdim=True) - q).to(torch.int64)]
    total = np.add.accumulate(terms.numpy(), axis=-1, dtype=np.float32)[..., -1:]
    factor = torch.from_numpy(np.float32(1) / (total * np.float32(output.scale)))
    y = (terms * factor + 0.5).floor_().add_(output.zero_point).clamp_(output.low, output.high)
    return y.movedim(-1, axis)


def tabled(node: Node, x: Quantized, output: Format, arithmetic: Arithmetic) -> Tensor:
    """f(x) through a table of all 256 levels, f in float64: where a value lies next to the middle between two levels,
    an engine's own float32 may fall on the other side (3 of 102,400 levels of Sigmoid)."""
    low = x.format.low
    levels = (torch.arange(low, x.format.high + 1).double() - x.format.zero_point).float() * float(x.format.scale)
    table = quantize(TABLED[node.op](levels.double(), node).float(), output, arithmetic.quantize)
    return table[(x.q - low).to(torch.int64)]


def _gelu(v: Tensor, node: Node) -> Tensor:
    return torch.nn.functional.gelu(v, approximate=node.attributes.get("approximate", b"none").decode())


TABLED: Mapping[str, Callable[[Tensor, Node], Tensor]] = {
    "Gelu": _gelu,
    "Sigmoid": lambda v, _: torch.sigmoid(v),
    "Tanh": lambda v, _: torch.tanh(v),
}


def _byte_factor(x: Quantized, output: Format) -> Tensor:
    return torch.round(torch.tensor(256 * float(np.float32(x.format.scale / output.scale))))


def _shifted(product: Tensor, output: Format) -> Tensor:
    v = (product.to(torch.int64) + 128 >> 8) + output.zero_point
    return v.clamp_(output.low, output.high).float()


def _sixteen_bits(factor: np.float32) -> tuple[int, int]:
    """m and e of factor = m · 2^(e - 15), m of 15 bits."""
    m, e = mantissa_and_exponent(torch.tensor(float(factor), dtype=torch.float64))
    return min((int(m) + (1 << 15)) >> 16, (1 << 15) - 1), int(e)


def _rounded_high(v: Tensor, m: int) -> Tensor:
    """The high half of 2 · v · m in 16 bits, half away from zero."""
    product = v * m
    nudged = product + torch.where(product >= 0, 1 << 14, 1 - (1 << 14))
    return torch.where(nudged >= 0, nudged >> 15, -((-nudged) >> 15))


def _halved(v: Tensor, times: int) -> Tensor:
    """v / 2^times, half away from zero."""
    mask = (1 << times) - 1
    return (v >> times) + ((v & mask) > (mask >> 1) + (v < 0).to(torch.int64))


def _in_16_bits(v: Tensor) -> Tensor:
    return v.clamp(-(1 << 15), (1 << 15) - 1)
