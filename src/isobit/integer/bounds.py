"""Bounds: which accumulators can overflow and which pairs of products can saturate, from the weights alone."""

from pathlib import Path

import numpy as np
import onnx

from isobit.core.arithmetic import FLOAT32, Arithmetic
from isobit.core.records import OverflowRisk
from isobit.integer.model import Graph, Node, described_by, read_graph
from isobit.integer.plan import Plan, Step
from isobit.integer.values import Constant, Format


def overflow_risks(source: Path | str | onnx.ModelProto, arithmetic: Arithmetic = FLOAT32) -> tuple[OverflowRisk, ...]:
    """The layers whose integers can leave their registers for some input, with the channels where they can.

    - accumulator: max over q of |Σ w (q - z) + b| has to stay below 2^(bits - 1), output channel by output
      channel. The extreme input is known: the highest level where w > 0 and the lowest where w < 0, or the reverse.
    - pair, where the arithmetic has `pair_bits`: products of an unsigned activation and a signed weight are added
      two by two and saturate, so q_max · (w_1 + w_2) has to stay within 16 bits for any two weights of a channel
      that have the same sign. Which two an engine pairs depends on its layout, so the two largest are taken:
      where this finds nothing, no layout saturates.

    Levels that cannot occur (a Clip on the integers to 4 bits) are left out. Raises ArtifactError.
    """
    graph = read_graph(source)
    plan = Plan(graph, arithmetic)
    risks: list[OverflowRisk] = []
    for step in plan.steps:
        with described_by(step.node):
            risks += _of_step(graph, plan, step, arithmetic)
    return tuple(risks)


def _of_step(graph: Graph, plan: Plan, step: Step, arithmetic: Arithmetic) -> list[OverflowRisk]:
    node = step.node
    if node.op == "MatMulInteger" and node.inputs[1] in graph.constants:
        return _dynamic(graph, node, arithmetic)
    if step.rule not in ("integer", "to_float") or node.op not in ("Conv", "Gemm", "MatMul"):
        return []
    x, w = plan.format(node.inputs[0]), plan.weight(node.inputs[1])
    if x is None or w is None:
        return []
    levels = _levels(graph, node.inputs[0], x)
    rows = _rows(node, w)
    name = step.bias or (node.inputs[2] if len(node.inputs) > 2 else "")
    bias = plan.weight(name) if name else None
    sums = _extremes(rows, levels, x.zero_point, np.zeros(1, np.int64) if bias is None else bias.q.astype(np.int64))
    risks = _risk(node.name, "accumulator", sums, (1 << (arithmetic.accumulator_bits - 1)) - 1)
    if arithmetic.pair_bits is not None and not x.signed:
        risks += _risk(node.name, "pair", _pairs(rows, levels[1]), (1 << (arithmetic.pair_bits - 1)) - 1)
    return risks


def _dynamic(graph: Graph, node: Node, arithmetic: Arithmetic) -> list[OverflowRisk]:
    """The risks of a product whose input has a range of its own: bytes with any zero point z, so that a term lies
    between -z · w and (255 - z) · w and a sum within 255 times that of the weights of one sign."""
    q = graph.constants[node.inputs[1]].astype(np.int64)
    zero_point = graph.constants[node.inputs[3]] if len(node.inputs) > 3 else np.zeros((), np.int64)
    rows = (q - zero_point.astype(np.int64)).T
    sums = np.maximum(rows.clip(min=0).sum(1), -rows.clip(max=0).sum(1)) * 255
    risks = _risk(node.name, "accumulator", sums, (1 << (arithmetic.accumulator_bits - 1)) - 1)
    if arithmetic.pair_bits is not None:
        risks += _risk(node.name, "pair", _pairs(q.T, 255), (1 << (arithmetic.pair_bits - 1)) - 1)
    return risks


def _risk(layer: str, kind: str, worst: np.ndarray, limit: int) -> list[OverflowRisk]:
    channels = tuple(int(c) for c in np.flatnonzero(worst > limit))
    if not channels:
        return []
    found = int(worst.max())
    if kind == "pair":
        return [OverflowRisk(layer=layer, kind="pair", channels=channels, worst=found, limit=limit)]
    return [OverflowRisk(layer=layer, kind="accumulator", channels=channels, worst=found, limit=limit)]


def _rows(node: Node, w: Constant) -> np.ndarray:
    """The centred weights as (output channels, products)."""
    values = w.centred
    if node.op == "Conv" or node.attributes.get("transB", 0):
        return values.reshape(values.shape[0], -1)
    return values.T


def _extremes(rows: np.ndarray, levels: tuple[int, int], zero_point: int, bias: np.ndarray) -> np.ndarray:
    """The largest |accumulator| of each channel. Padding adds 0, which lies between the extremes of one product."""
    low, high = levels[0] - zero_point, levels[1] - zero_point
    low, high = min(low, 0), max(high, 0)
    positive, negative = rows.clip(min=0).sum(1), rows.clip(max=0).sum(1)
    highest = positive * high + negative * low + bias
    lowest = positive * low + negative * high + bias
    worst: np.ndarray = np.maximum(np.abs(highest), np.abs(lowest))
    return worst


def _pairs(rows: np.ndarray, q_max: int) -> np.ndarray:
    """The largest |q (w_1 + w_2)| over two weights of a channel; the register holds one more below than above."""
    if rows.shape[1] == 1:
        rows = np.pad(rows, ((0, 0), (0, 1)))
    ordered = np.sort(rows, axis=1)
    above, below = ordered[:, -2:].clip(min=0).sum(1) * q_max, -ordered[:, :2].clip(max=0).sum(1) * q_max
    worst: np.ndarray = np.maximum(above, below - 1)
    return worst


def _levels(graph: Graph, tensor: str, x: Format) -> tuple[int, int]:
    """The levels that can occur in an activation: those of its format, less what a Clip on the integers removes."""
    low, high = x.low, x.high
    while (node := graph.producers.get(tensor)) is not None and node.op != "QuantizeLinear":
        if node.op == "Clip" and graph.producers.get(node.inputs[0]) is not None:
            limits = [graph.constants.get(name) if name else None for name in (*node.inputs[1:3], "", "")[:2]]
            integers = all(v is None or v.dtype.kind in "iu" for v in limits)
            if integers and limits[0] is not None:
                low = max(low, int(limits[0]))
            if integers and limits[1] is not None:
                high = min(high, int(limits[1]))
        tensor = node.inputs[0]
    return low, high
