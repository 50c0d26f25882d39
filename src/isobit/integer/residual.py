"""Sums inside a convolution: OpenVINO adds a residual's bytes to the accumulator, in units of the residual's scale.

Signed bytes are unsigned there, 128 higher. Where the file rounds the convolution's own result first, OpenVINO clips it
and does not round. Measured on OpenVINO 2026.4.
"""

from dataclasses import dataclass
from typing import final

import numpy as np
from torch import Tensor

from isobit.integer.model import Graph, Node
from isobit.integer.requantize import quantize_in_units
from isobit.integer.values import Format, Quantized


@final
@dataclass(frozen=True, eq=False, slots=True)
class ResidualSum:
    """quantize(relu(convolution + residual)). `between` are the quantizer of the convolution alone and what undoes it.

    `behind` are the ReLU, where there is one, and at last who rounds the sum.
    """

    convolution: Node
    residual: str
    between: tuple[Node, ...]
    behind: tuple[Node, ...]


def residual_sum(graph: Graph, add: Node, products: set[str]) -> ResidualSum | None:
    """The sum that an Add of a convolution's float result, one of `products`, is part of; None where it is none.

    Where both operands could be that, it is the first. A convolution that is rounded and reads the residual itself
    stays alone.
    """
    reader = graph.only_reader(add.outputs[0])
    behind = (reader,) if reader is not None and reader.op == "Relu" else ()
    if behind:
        reader = graph.only_reader(behind[0].outputs[0])
    if reader is None or reader.op != "QuantizeLinear" or add.inputs[0] == add.inputs[1]:
        return None
    for mine, residual in (add.inputs, add.inputs[::-1]):
        between = rounded_alone(graph, mine, add)
        product = between[0].inputs[0] if between else mine
        if product not in products or graph.only_reader(product) is not (between[0] if between else add):
            continue
        convolution = graph.producers[product]
        if not between or convolution.inputs[0] != residual:
            return ResidualSum(convolution, residual, between, (*behind, reader))
    return None


def rounded_alone(graph: Graph, tensor: str, add: Node) -> tuple[Node, ...]:
    """QuantizeLinear and DequantizeLinear in front of an operand that nothing else reads; empty where they are not."""
    dequantize = graph.producers.get(tensor)
    quantize = graph.producers.get(dequantize.inputs[0]) if dequantize is not None else None
    if dequantize is None or quantize is None or (quantize.op, dequantize.op) != ("QuantizeLinear", "DequantizeLinear"):
        return ()
    alone = graph.only_reader(tensor) is add and graph.only_reader(dequantize.inputs[0]) is dequantize
    return (quantize, dequantize) if alone else ()


def is_known(residual: Format | None, output: Format, between: Format | None) -> bool:
    """Whether OpenVINO's rule for a sum of these formats is known."""
    if residual is None or max(residual.bits, output.bits) > 8:
        return False
    if between is not None:
        return not (residual.signed or output.signed or between.signed)
    return all(f.zero_point == 0 for f in (residual, output))


def add_residual(
    acc: Tensor, scale: Tensor, bias: Tensor | None, residual: Quantized, output: Format, between: Format | None = None
) -> Tensor:
    """The integers of y = u + (q - z) · s_r, u = acc · s + b and s = s_x · s_w by channel, all steps in float32.

    In units of s_r, v = (u - z · s_r) · (1 / s_r) + q; with a format between, v = fma(clip(u), K, -z) + q with
    K = (levels / width) · (s_1 / s_r). `acc` are exact integers, which `scale` and `bias` broadcast against.
    """
    unit = np.float32(residual.format.scale)
    q, zero = residual.q - residual.format.low, residual.format.zero_point - residual.format.low
    v = acc.float() * scale
    v = v if bias is None else v + bias
    if between is None:
        v = (v - float(zero * unit)) * float(np.float32(1) / unit) + q
        return quantize_in_units(v, unit, output, product=True)
    low, high = (np.float32(np.float32(n - between.zero_point) * between.scale) for n in (between.low, between.high))
    slope = np.float32(between.high - between.low) / np.float32(high - low) * np.float32(between.scale / unit)
    v = (v.clamp_(float(low), float(high)).double() * float(slope) - zero).float()
    return quantize_in_units(v + q, unit, output, product=True)
