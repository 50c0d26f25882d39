"""The referee: what to know about a quantized file that others made, op by op, and what to change in it."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import final

import numpy as np
import onnx

from isobit.core.arithmetic import Arithmetic, ThroughFloat
from isobit.core.errors import ArtifactError, UnsupportedError
from isobit.core.records import Finding
from isobit.engines.base import COMPUTES
from isobit.integer import overflow_risks
from isobit.integer.model import Graph, Node, described_by
from isobit.integer.plan import FUSES, TRAVELS, Plan
from isobit.integer.residual import rounded_alone

Reason = tuple[str, str]
"""A problem and its remedy."""

_WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_PAIRS = frozenset({"Add", "Mul", "Concat"})

_QUANTIZE = "quantize that tensor too (QuantizeLinear, DequantizeLinear)"
_DROPS = "drops the rounding between"
_SIGNED = (
    "in float: its activations are signed bytes",
    "export unsigned bytes: the same scale, a zero point 128 higher",
)
_WIDE = (
    "in float: its activations have 16 bits",
    "8 bits: no engine here has integer kernels for more in an ONNX file",
)


def check_judgeable(file: onnx.ModelProto, path: Path) -> None:
    """Raise ArtifactError for a file that quantizes nothing, UnsupportedError for one that computes in float16."""
    halves = {t.name for t in file.graph.initializer if t.data_type == onnx.TensorProto.FLOAT16}
    for node in file.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and node.input[1] in halves:
            raise UnsupportedError(
                f"{path} computes in float16 between its quantizers ({node.name} has a scale of it), which engines on "
                "CPUs turn into float32 each in its own way: write it in float32 (ModelOpt: high_precision_dtype=fp32)"
            )
    quantizers = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulNBits", "MatMulInteger"}
    if not any(n.op_type in quantizers for n in file.graph.node):
        beside = path.with_suffix(".encodings")
        hint = f". {beside.name} lies beside it: give it with --encodings" if beside.is_file() else ""
        raise ArtifactError(
            f"{path} was not written by isobit, and nothing in it is quantized: there are no integers to compare. "
            f"Quantize the network first (isobit quantize), or give the quantized file{hint}"
        )


def judge(file: onnx.ModelProto, arithmetic: Arithmetic, *, engine: str, islands: Iterable[str]) -> tuple[Finding, ...]:
    """All findings, those about ops that ran in float first. `islands` are the engine's, by the names of the file."""
    graph = Graph(file)
    found = _Findings(graph, Plan(graph, arithmetic))
    reasons: dict[Reason, list[str]] = {}
    ran_in_float = set(islands)
    for node in graph.nodes:
        if node.name in ran_in_float and node.op in COMPUTES:
            with described_by(node):
                for reason in found.of_float_op(node):
                    reasons.setdefault(reason, []).append(node.name)
    for node in graph.nodes:
        with described_by(node):
            for reason in found.of_any_op(node, engine):
                reasons.setdefault(reason, []).append(node.name)
    wide = replace(arithmetic, pair_bits=16)
    for risk in overflow_risks(file, wide):
        if risk.kind == "pair":
            problem = "on x86 before VNNI, sums of two products can saturate in 16 bits, seen from the weights alone"
            remedy = "give these weights 7 bits (reduce_range in onnxruntime.quantization) where such machines count"
            reasons.setdefault((problem, remedy), []).append(risk.layer)
    return tuple(
        Finding(problem=p, remedy=r, ops=tuple(ops), drops_rounding=p.endswith(_DROPS))
        for (p, r), ops in reasons.items()
    )


def planned_islands(file: onnx.ModelProto, arithmetic: Arithmetic) -> tuple[str, ...]:
    """The ops that compute in float by the rules of the integer reference, in the order of the file."""
    steps = Plan(Graph(file), arithmetic).steps
    return tuple(s.node.name for s in steps if s.rule == "float" and s.node.op in COMPUTES)


@final
class _Findings:
    """The reasons, from the graph and from what the integer reference could plan."""

    def __init__(self, graph: Graph, plan: Plan) -> None:
        self.graph, self.plan = graph, plan

    def of_float_op(self, node: Node) -> list[Reason]:
        """Why an op that could compute with integers ran in float: what is missing around it."""
        if node.op in ("Relu", "Clip"):
            before = self.graph.producers.get(node.inputs[0])
            found = [] if before is None else list(self._behind(before))
            return found or [(f"in float: {node.op} on its own", "quantize what goes into it, or what comes out")]
        if node.op == "ReduceMean":
            return [
                (
                    "in float: ReduceMean has no integer kernel",
                    "write the mean over height and width as GlobalAveragePool, which has one",
                )
            ]
        if node.op not in FUSES | TRAVELS:
            return [(f"in float: {node.op} has no integer kernel", "keep it, or put another op in its place")]
        found = [*self._in_front(node), *self._weights(node), *self._behind(node)]
        return list(dict.fromkeys(found)) or [
            (
                f"{node.op} in float though all around it is quantized",
                "the engine has no kernel for this combination of types: use unsigned activations and signed weights",
            )
        ]

    def of_any_op(self, node: Node, engine: str) -> Iterator[Reason]:
        """What stands against an op wherever it runs: it may compute with integers, but not as the file says."""
        if node.op in _WEIGHTED:
            yield from self._float_weight(node)
            yield from self._bias(node)
            weight = self.plan.weight(node.inputs[1])
            if weight is not None and np.any(weight.zero_point):
                yield "weights are asymmetric: they have zero points", "use symmetric weights, zero point 0"
        if self.plan.arithmetic.adds_in_convolution and node.op == "Add" and self._adds_rounded_convolution(node):
            problem = f"{engine} adds the residual inside the convolution before it and {_DROPS}"
            yield problem, "leave the tensor between that convolution and the Add without a quantizer"

    def _in_front(self, node: Node) -> Iterator[Reason]:
        names = node.inputs if node.op in _PAIRS else node.inputs[:1]
        for name in filter(None, names):
            form = self.plan.format(name)
            if form is None and name not in self.plan.constants:
                if self._scales_behind(name) > 1:
                    yield (
                        "in float: its input has a scale for each channel, which no sum of products can take out",
                        "give activations one scale (per tensor)",
                    )
                else:
                    yield (f"in float: {node.op} input is not quantized", _QUANTIZE)
            elif form is not None and name not in self.plan.constants and (form.bits > 8 or form.signed):
                yield _WIDE if form.bits > 8 else _SIGNED

    def _weights(self, node: Node) -> Iterator[Reason]:
        if node.op not in _WEIGHTED or (node.op == "MatMul" and self.plan.format(node.inputs[1]) is not None):
            return
        weight = self.plan.weight(node.inputs[1])
        if weight is None:
            yield ("in float: its weight is float, or quantized in blocks", "give it 8-bit integers in the file")
            return
        if weight.q.dtype.itemsize != 1:
            yield (f"in float: its weight has the type {weight.q.dtype}", "use 8-bit integers")
        elif weight.scale.size > 1 and weight.axis % weight.q.ndim != (
            0 if node.op == "Conv" or node.attributes.get("transB") else 1
        ):
            yield (
                f"in float: the scales of its weight run along axis {weight.axis}",
                "give one scale for each output channel, or one for all",
            )

    def _float_weight(self, node: Node) -> Iterator[Reason]:
        weight = self.graph.constants.get(node.inputs[1])
        quantized = self.plan.format(node.inputs[0]) is not None
        if quantized and weight is not None and weight.dtype.kind == "f":
            yield (
                "weight is float behind a quantizer: an engine may quantize it silently, by a rule of its own",
                "give it 8-bit integers in the file",
            )

    def _bias(self, node: Node) -> Iterator[Reason]:
        x, weight = self.plan.format(node.inputs[0]), self.plan.weight(node.inputs[1])
        name = node.inputs[2] if len(node.inputs) > 2 else ""
        literal = isinstance(self.plan.arithmetic.requantize, ThroughFloat)  # adds a bias as the float that it is
        if not name or x is None or weight is None or literal:
            return
        bias = self.plan.weight(name)
        if name in self.graph.constants or bias is None or bias.q.dtype != np.int32:
            yield (
                "bias is float: an engine that multiplies integers rounds it silently, each its own way",
                "store it as int32 at s_x · s_w, zero point 0",
            )
            return
        expected = np.broadcast_to(np.float64(x.scale) * weight.scale.reshape(-1), bias.q.shape)
        if not np.allclose(np.broadcast_to(bias.scale.reshape(-1), bias.q.shape), expected, rtol=1e-4, atol=0):
            yield ("the scale of the bias is not s_x · s_w", "requantize it at the product of both scales")

    def _behind(self, node: Node) -> Iterator[Reason]:
        """What keeps the result from its quantizer."""
        tensor = node.outputs[0]
        while True:
            readers = self.graph.readers.get(tensor, [])
            if tensor in self.graph.outputs:
                yield ("in float: its result is an output of the file without a quantizer", _QUANTIZE)
                return
            quantizer = next((n for n in readers if n.op == "QuantizeLinear"), None)
            if quantizer is not None:
                if len(readers) > 1:
                    yield (
                        "in float: others read its result before it is rounded",
                        "let all read the quantized tensor",
                    )
                elif self._scales_of(quantizer) > 1:
                    yield (
                        "in float: the quantizer behind it has a scale for each channel",
                        "give activations one scale (per tensor)",
                    )
                elif (form := self.plan.node_format(quantizer)).bits > 8 or form.signed:
                    yield _WIDE if form.bits > 8 else _SIGNED
                return
            if len(readers) != 1 or readers[0].op not in TRAVELS | {"Relu", "Clip"}:
                yield (f"in float: no quantizer reads the result of this {node.op}", _QUANTIZE)
                return
            if readers[0].op in ("Relu", "Clip"):
                yield from self._activation(readers[0])
            tensor = readers[0].outputs[0]

    def _activation(self, node: Node) -> Iterator[Reason]:
        """A Relu or Clip that clips more than the quantizer behind it does."""
        after = self.graph.only_reader(node.outputs[0])
        if after is None or after.op != "QuantizeLinear" or self._scales_of(after) != 1:
            return
        form = self.plan.node_format(after)
        if self.plan.absorb(node, form) is None:
            yield (
                f"in float: a {node.op} clips inside the range of its quantizer",
                "let the range end where the activation clips, or clip the integers",
            )

    def _adds_rounded_convolution(self, node: Node) -> bool:
        """Whether an Add is the only reader of a convolution's rounded result; one that itself reads the residual stays
        alone (measured on OpenVINO 2026.4)."""
        rounded = [found for name in node.inputs if (found := rounded_alone(self.graph, name, node))]
        makers = [self.graph.producers.get(quantize.inputs[0]) for quantize, _ in rounded]
        return any(m is not None and m.op == "Conv" and m.inputs[0] not in node.inputs for m in makers)

    def _scales_behind(self, name: str) -> int:
        node = self.graph.producers.get(name)
        return self._scales_of(node) if node is not None and node.op == "DequantizeLinear" else 1

    def _scales_of(self, node: Node) -> int:
        scale = self.graph.constants.get(node.inputs[1])
        return 1 if scale is None else int(scale.size)
