"""Sums inside a convolution: OpenVINO adds a residual's bytes to the accumulator, in units of the residual's scale.

Measured on OpenVINO 2026.4 for a residual and a result that start at level 0 (behind a ReLU).
"""

from dataclasses import dataclass
from typing import final

import numpy as np
from torch import Tensor

from isobit.integer.model import Graph, Node
from isobit.integer.values import Format, Quantized


@final
@dataclass(frozen=True, eq=False, slots=True)
class ResidualSum:
    """quantize(convolution + residual): the convolution's node, the other operand of `add`, and who rounds the sum."""

    convolution: Node
    add: Node
    residual: str
    relu: Node | None
    quantize: Node


def residual_sum(graph: Graph, add: Node, products: set[str]) -> ResidualSum | None:
    """The sum that an Add of a convolution's float result, one of `products`, is part of; None where it is none."""
    mine = next((n for n in add.inputs if n in products and graph.only_reader(n) is add), None)
    reader = graph.only_reader(add.outputs[0])
    relu = reader if reader is not None and reader.op == "Relu" else None
    if relu is not None:
        reader = graph.only_reader(relu.outputs[0])
    if mine is None or add.inputs[0] == add.inputs[1] or reader is None or reader.op != "QuantizeLinear":
        return None
    (residual,) = (n for n in add.inputs if n != mine)
    return ResidualSum(graph.producers[mine], add, residual, relu, reader)


def starts_at_zero(format_: Format | None) -> bool:
    """Whether 0 is the lowest of the levels, and the integer 0 stands for it: the formats whose rule is known."""
    return format_ is not None and format_.zero_point == format_.low == 0


def add_residual(acc: Tensor, scale: Tensor, bias: Tensor | None, residual: Quantized, output: Format) -> Tensor:
    """rint(max(fma(acc, d, (b / s) · d) + q_r, 0) · 1 / (1 / k)) with d = s · (1 / s_r), k = 255 / (255 s_y / s_r).

    `scale` is s = s_x · s_w, by channel, float32, and so is the bias; both broadcast against `acc`, exact integers.
    """
    one, steps = np.float32(1), np.float32(output.high - output.low)
    d = scale * float(one / residual.format.scale)
    v = acc.double() * d.double()
    if bias is not None:
        v += ((bias / scale) * d).double()
    v = v.float() + residual.q
    k = steps / np.float32(np.float32(steps * output.scale) / residual.format.scale)
    return (v.clamp_(min=0) * float(one / (one / k))).round_().clamp_(output.low, output.high)
