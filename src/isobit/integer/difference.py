"""Where two executions of a file part: the first op, in the order of the file, whose integers differ."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx

from isobit.core.arithmetic import FLOAT32, Arithmetic
from isobit.core.errors import ArtifactError
from isobit.core.records import Mismatch
from isobit.integer.model import Graph, Node, read_graph
from isobit.integer.plan import Plan
from isobit.integer.step import Step


def quantized_tensors(source: Path | str | onnx.ModelProto) -> tuple[str, ...]:
    """The outputs of all QuantizeLinear nodes, in the order of the file: what an engine has to return to compare."""
    return _quantized(read_graph(source))


def first_difference(
    source: Path | str | onnx.ModelProto,
    reference: Mapping[str, np.ndarray],
    engine: Mapping[str, np.ndarray],
    arithmetic: Arithmetic = FLOAT32,
) -> Mismatch | None:
    """The first op whose integers differ between `reference` and `engine`, None where all are equal.

    Both map the names of `quantized_tensors` to integers; a name that one of them lacks is passed over, but at
    least one has to be there. `rule` says which arithmetic the reference used, or that the op is in float.
    """
    graph = read_graph(source)
    names = [name for name in _quantized(graph) if name in reference and name in engine]
    if not names:
        raise ArtifactError("no quantized tensor is known to both executions: load the engine with `expose`")
    for name in names:
        mine, theirs = np.asarray(reference[name]).astype(np.int64), np.asarray(engine[name]).astype(np.int64)
        if mine.shape != theirs.shape:
            raise ArtifactError(f"{name}: the reference has the shape {mine.shape}, the engine {theirs.shape}")
        distance = np.abs(mine - theirs)
        if differ := int(np.count_nonzero(distance)):
            node = _computing(graph, graph.producers[name])
            return Mismatch(
                op=node.op,
                name=node.name,
                differ=differ,
                total=distance.size,
                largest=float(distance.max()),
                rule=_rule(Plan(graph, arithmetic), node, arithmetic),
            )
    return None


def _quantized(graph: Graph) -> tuple[str, ...]:
    return tuple(node.outputs[0] for node in graph.nodes if node.op == "QuantizeLinear")


def _computing(graph: Graph, quantize: Node) -> Node:
    """The op whose result a QuantizeLinear node rounds: the node before it, over what it absorbs and what moves it."""
    node = graph.producers.get(quantize.inputs[0])
    while node is not None and node.op in ("Relu", "Clip", "Transpose"):
        before = graph.producers.get(node.inputs[0])
        if before is None or before.op == "DequantizeLinear":
            break
        node = before
    return quantize if node is None or node.op == "DequantizeLinear" else node


def _rule(plan: Plan, node: Node, arithmetic: Arithmetic) -> str:
    step = next((s for s in plan.steps if s.node is node), None)
    if step is None or step.rule == "quantize":
        return "QuantizeLinear: rint(x / s) + z"
    if step.rule == "to_float":
        return f"{node.op} with integers, rescaled in float32, then QuantizeLinear"
    if step.rule == "absorbed":
        return f"{node.op} inside the convolution before it, which then rounds once"
    if step.rule in ("float", "travel"):
        return f"{node.op} in float32, then QuantizeLinear"
    return _integer_rule(step, arithmetic)


def _integer_rule(step: Step, arithmetic: Arithmetic) -> str:
    rules = {
        "Add": arithmetic.add,
        "AveragePool": arithmetic.average,
        "Concat": arithmetic.concat,
        "GlobalAveragePool": arithmetic.global_average,
    }
    return f"{step.node.op} with integers, {rules.get(step.node.op, arithmetic.requantize)}"
