"""Bounds: which accumulators can overflow and which pairs of products can saturate, from the weights alone."""

from pathlib import Path

import numpy as np
import onnx

from isobit.core.arithmetic import FLOAT32, Arithmetic
from isobit.core.risks import OverflowRisk
from isobit.integer.model import Graph, Node, described_by, read_graph
from isobit.integer.pairs import OFFSET, PairedProducts
from isobit.integer.plan import TRAVELS, Plan
from isobit.integer.step import Step
from isobit.integer.values import Format


def overflow_risks(source: Path | str | onnx.ModelProto, arithmetic: Arithmetic = FLOAT32) -> tuple[OverflowRisk, ...]:
    """The layers whose integers can leave their registers for some input, with the channels where they can.

    - accumulator: max over q of |Σ w (q - z) + b| has to stay below 2^(bits - 1), output channel by output
      channel. The extreme input is known: the highest level where w > 0 and the lowest where w < 0, or the reverse.
    - pair, where the arithmetic has `pair_bits`: q_1 w_1 + q_2 w_2 has to stay within 16 bits for every two weights
      that an engine adds (`isobit.integer.pairs`), both levels being as bad as they can be.

    Levels that cannot occur (a Clip or Min on the integers) are left out. Raises ArtifactError.
    """
    graph = read_graph(source)
    plan = Plan(graph, arithmetic)
    risks: list[OverflowRisk] = []
    for step in plan.steps:
        with described_by(step.node):
            risks += _of_step(graph, plan, step, arithmetic)
    return tuple(risks)


def accumulating(source: Path | str | onnx.ModelProto, arithmetic: Arithmetic = FLOAT32) -> tuple[str, ...]:
    """The layers that sum products of integers, in the order of the file. Raises ArtifactError.

    A MatMulNBits whose kernel rounds its inputs to bytes (accuracy_level 4) is one: it sums a block at a time, 2^24 at
    most.
    """
    graph = read_graph(source)
    plan = Plan(graph, arithmetic)
    return tuple(step.node.name for step in plan.steps if _accumulates(graph, plan, step))


def _accumulates(graph: Graph, plan: Plan, step: Step) -> bool:
    node = step.node
    match node.op:
        case "MatMulInteger":
            return node.inputs[1] in graph.constants
        case "MatMulNBits":
            return int(node.attributes.get("accuracy_level", 0)) == 4
        case "Conv" | "Gemm" | "MatMul":
            formats = plan.format(node.inputs[0]), plan.weight(node.inputs[1])
            return step.rule in ("integer", "to_float", "summed") and None not in formats
    return False


def _of_step(graph: Graph, plan: Plan, step: Step, arithmetic: Arithmetic) -> list[OverflowRisk]:
    node = step.node
    if not _accumulates(graph, plan, step):
        return []
    if node.op == "MatMulInteger":
        return _dynamic(graph, node, arithmetic)
    x, w = plan.format(node.inputs[0]), plan.weight(node.inputs[1])
    if x is None or w is None:
        return []
    low, high = _levels(graph, node, x)
    name = step.bias or (node.inputs[2] if len(node.inputs) > 2 else "")
    bias = plan.weight(name) if name else None
    centred = _products(node, w.centred, low - x.zero_point, high - x.zero_point)
    sums = accumulator(centred, np.zeros(1, np.int64) if bias is None else bias.q.astype(np.int64))
    risks = accumulator_risk(node.name, sums, arithmetic.accumulator_bits)
    if arithmetic.pair_bits is not None and w.q.dtype == np.int8:
        offset = OFFSET if x.signed else 0
        raw = _products(node, w.q.astype(np.int64), low + offset, high + offset)
        risks += pair_risk(node.name, raw, arithmetic.pair_bits)
    return risks


def accumulator(products: PairedProducts, bias: np.ndarray) -> np.ndarray:
    """The largest |Σ w q + b| of each output. Padding adds 0, which lies between the extremes of one product."""
    low, high = products.levels()
    low, high = np.minimum(low, 0), np.maximum(high, 0)
    rows = products.rows
    positive, negative = rows.clip(min=0), rows.clip(max=0)
    highest = (positive * high + negative * low).sum(1) + bias
    lowest = (positive * low + negative * high).sum(1) + bias
    worst: np.ndarray = np.maximum(np.abs(highest), np.abs(lowest))
    return worst


def accumulator_risk(layer: str, worst: np.ndarray, bits: int) -> list[OverflowRisk]:
    """The outputs whose sum leaves a register of so many bits: none, or one risk."""
    limit = (1 << (bits - 1)) - 1
    channels = tuple(int(c) for c in np.flatnonzero(worst > limit))
    if not channels:
        return []
    return [
        OverflowRisk(
            layer=layer, kind="accumulator", channels=channels, worst=int(worst.max()), limit=limit, outputs=len(worst)
        )
    ]


def pair_risk(layer: str, products: PairedProducts, bits: int) -> list[OverflowRisk]:
    """The outputs with a pair that saturates: none, or one risk."""
    worst, limit = products.worst(), (1 << (bits - 1)) - 1
    channels = tuple(int(c) for c in np.flatnonzero(worst > limit))
    if not channels:
        return []
    weights, levels = products.example(int(worst.argmax()))
    return [
        OverflowRisk(
            layer=layer, kind="pair", channels=channels, worst=int(worst.max()), limit=limit, outputs=len(worst),
            weights=weights, levels=levels,
        )
    ]  # fmt: skip


def _dynamic(graph: Graph, node: Node, arithmetic: Arithmetic) -> list[OverflowRisk]:
    """The risks of a product whose input has a range of its own: bytes with any zero point z, so that a term lies
    between -z · w and (255 - z) · w and a sum within 255 times that of the weights of one sign."""
    constant = graph.constants[node.inputs[1]]
    q = constant.astype(np.int64)
    zero_point = graph.constants[node.inputs[3]] if len(node.inputs) > 3 else np.zeros((), np.int64)
    rows = (q - zero_point.astype(np.int64)).T
    sums = np.maximum(rows.clip(min=0).sum(1), -rows.clip(max=0).sum(1)) * 255
    risks = accumulator_risk(node.name, sums, arithmetic.accumulator_bits)
    if arithmetic.pair_bits is not None and constant.dtype == np.int8:
        bytes_ = np.zeros((1, q.shape[0]), np.int64)
        risks += pair_risk(node.name, PairedProducts(q.T, bytes_, bytes_ + 255), arithmetic.pair_bits)
    return risks


def _products(node: Node, weight: np.ndarray, low: np.ndarray, high: np.ndarray) -> PairedProducts:
    """The products of a layer, whose input channels have the levels `low` to `high`: one for all, or one for each."""
    if node.op != "Conv" and not (node.op == "Gemm" and node.attributes.get("transB", 0)):
        weight = weight.T
    groups = int(node.attributes.get("group", 1)) if node.op == "Conv" else 1
    shape = (groups, weight.shape[1])
    levels = [np.broadcast_to(v, groups * weight.shape[1]).reshape(shape) for v in (low, high)]
    return PairedProducts(weight, *levels)


def _levels(graph: Graph, node: Node, x: Format) -> tuple[np.ndarray, np.ndarray]:
    """The levels that can occur in the input of a layer: those of its format, less what a Clip or a Min on the integers
    removes, for each channel where a Min has them and nothing in between moves channels; and those of padding."""
    low, high = np.array(x.low), np.array(x.high)
    tensor, stays = node.inputs[0], True
    while (before := graph.producers.get(tensor)) is not None and before.op != "QuantizeLinear":
        limits = [graph.constants.get(name) if name else None for name in (*before.inputs[1:3], "", "")[:2]]
        integers = all(v is None or v.dtype.kind in "iu" for v in limits)
        if before.op == "Clip" and integers and graph.producers.get(before.inputs[0]) is not None:
            low = low if limits[0] is None else np.maximum(low, int(limits[0]))
            high = high if limits[1] is None else np.minimum(high, int(limits[1]))
        elif before.op == "Min" and integers and len(before.inputs) == 2 and limits[0] is not None:
            caps = limits[0].astype(np.int64)
            rank = graph.rank(before.inputs[0])
            by_channel = stays and rank is not None and caps.shape[:1] == (caps.size,) and rank - caps.ndim == 1
            high = np.minimum(high, caps.reshape(-1) if by_channel else caps.max())
        stays = stays and (before.op == "MaxPool" or before.op not in TRAVELS)
        tensor = before.inputs[0]
    return np.minimum(low, x.zero_point), np.maximum(high, x.zero_point)
