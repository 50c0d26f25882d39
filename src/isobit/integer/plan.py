"""Which ops become one integer kernel: DequantizeLinear → op [→ Relu or Clip] → QuantizeLinear.

The rules are those of ONNX Runtime on x86 with its default optimizations: what fuses, which Relu and Clip are
absorbed, and through which ops QuantizeLinear travels backwards.
"""

from dataclasses import dataclass
from typing import final

import numpy as np

from isobit.core.arithmetic import Arithmetic, FloatMultiplier, HalfAway, ThroughFloat
from isobit.core.errors import UnsupportedError
from isobit.integer.low_bit import dequantized_blocks, rounded_weight
from isobit.integer.model import Graph, Node, described_by
from isobit.integer.residual import is_known, residual_sum
from isobit.integer.step import Step
from isobit.integer.values import Constant, Format

TRAVELS = frozenset({"MaxPool", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice"})
"""Ops that move or select integers; QuantizeLinear is carried back and DequantizeLinear forward over them."""

FUSES = frozenset(
    {"Add", "AveragePool", "Concat", "Conv", "Gemm", "GlobalAveragePool", "LeakyRelu", "MatMul", "Mul", "Sigmoid",
     "Softmax"}
)  # fmt: skip
"""Ops with integer kernels."""

_KEEP_FORMAT = frozenset({"Max", "Min", "Pad"})
"""Ops whose integer kernels have one format for all that goes in and comes out."""

_WIDE = frozenset({"Add", "AveragePool", "Concat", "Conv", "Gemm", "MatMul", "Max", "Min", "Mul", "Pad", "Sub"})
"""Ops whose kernels for 16 bits round as those of sums and products do, where an arithmetic has rules for them."""

_BYTES = (np.dtype(np.int8), np.dtype(np.uint8), np.dtype(np.int16), np.dtype(np.uint16))


@dataclass(frozen=True, eq=False, slots=True)
class _Target:
    """Where the integers of a fused op go."""

    quantize: Node
    output: Format
    absorbed: tuple[Node, ...]
    result: str
    seen_through: bool
    limits: tuple[int, int]


@final
class Plan:
    """The steps for a graph, in order, and its weights."""

    def __init__(self, graph: Graph, arithmetic: Arithmetic) -> None:
        self.graph, self.arithmetic = graph, arithmetic
        self.constants: dict[str, Constant] = {}
        self.formats: dict[str, Format] = {}
        self.integer_inputs = frozenset(
            name
            for name in graph.inputs
            if graph.input_types[name] in _BYTES
            and any(n.op == "DequantizeLinear" for n in graph.readers.get(name, ()))
        )
        self._integers: set[str] = set(self.integer_inputs)
        self._behind: set[int] = set()
        self._done: set[int] = set()
        self.steps: list[Step] = []
        for node in graph.nodes:
            if node.op == "QuantizeLinear" and self._rounds_weight(node):
                with described_by(node):
                    values = [graph.constants[name] for name in node.inputs]
                    graph.constants[node.outputs[0]] = rounded_weight(values, int(node.attributes.get("axis", 1)))
        for node in graph.nodes:
            if node.op == "DequantizeLinear" and node.inputs[0] in graph.constants:
                self._dequantize(node)  # a bias may stand behind the product that takes it in
        for node in graph.nodes:
            if id(node) not in self._done:
                with described_by(node):
                    self.steps.append(self._step(node))

    def _rounds_weight(self, node: Node) -> bool:
        """Whether a QuantizeLinear rounds a float weight of the file: engines do that while they load it."""
        if any(name not in self.graph.constants for name in node.inputs if name):
            return False
        behind = [r for r in self.graph.readers.get(node.outputs[0], []) if r.op == "DequantizeLinear"]
        readers = [(r, d.outputs[0]) for d in behind for r in self.graph.readers.get(d.outputs[0], [])]
        return any(name in r.inputs[1:2] and r.op in ("Conv", "ConvTranspose", "Gemm", "MatMul") for r, name in readers)

    def weight(self, tensor: str) -> Constant | None:
        """The integers behind `tensor`, where it is a dequantized initializer."""
        return self.constants.get(tensor)

    def format(self, tensor: str) -> Format | None:
        """The format of an activation, or of a constant with one scale, seen through DequantizeLinear."""
        constant = self.constants.get(tensor)
        return constant.format if constant is not None else self.formats.get(tensor)

    def _step(self, node: Node) -> Step:
        match node.op:
            case "DequantizeLinear":
                return self._dequantize(node)
            case "QuantizeLinear" if self._scales(node) != 1:
                return Step(node, "float")  # a scale for each channel: no engine's sums of products can take it out
            case "QuantizeLinear":
                self._integers.add(node.outputs[0])
                return Step(
                    node, "quantize", output=self.node_format(node), result=node.outputs[0],
                    behind_product=id(node) in self._behind, exposed=self._exposed(node),
                )  # fmt: skip
            case "Transpose" if node.inputs[0] in self.constants:
                order = node.ints("perm", range(self.constants[node.inputs[0]].q.ndim)[::-1])
                self.constants[node.outputs[0]] = self.constants[node.inputs[0]].transposed(order)
                return Step(node, "constant")
        if node.inputs and node.inputs[0] in self._integers:
            self._integers.update(node.outputs)
            return Step(node, "integers")
        if node.op == "Gather" and node.inputs[0] in self.graph.constants and node.inputs[1] in self._integers:
            self._integers.update(node.outputs)
            return Step(node, "looked_up")
        if node.op in TRAVELS and node.inputs[0] in self.formats:
            self.formats |= dict.fromkeys(node.outputs, self.formats[node.inputs[0]])
            return Step(node, "travel")
        if node.op == "Add" and self.arithmetic.adds_in_convolution and (step := self._summed(node)) is not None:
            return step
        if (node.op in FUSES or node.op in self.arithmetic.more) and (step := self._fused(node)) is not None:
            return step
        return Step(node, "float")

    def _dequantize(self, node: Node) -> Step:
        source = node.inputs[0]
        if node.inputs[1] not in self.graph.constants:
            return Step(node, "float")  # a dynamic range: the scale belongs to each input
        if source not in self.graph.constants and self._scales(node) != 1:
            return Step(node, "float")
        if source not in self.graph.constants:
            format_ = self.node_format(node)
            if source in self._integers:
                self.formats[node.outputs[0]] = format_
            return Step(node, "dequantize", output=format_)
        q = self.graph.constants[source]
        scale = self.graph.constants[node.inputs[1]]
        zero_point = self.graph.constants[node.inputs[2]] if len(node.inputs) > 2 else np.zeros(scale.shape, q.dtype)
        axis = int(node.attributes.get("axis", 1))
        if block := int(node.attributes.get("block_size", 0)):
            self.graph.constants[node.outputs[0]] = dequantized_blocks(q, scale, zero_point, axis, block)
            return Step(node, "constant")
        self.constants[node.outputs[0]] = Constant(q, scale, zero_point, axis if q.ndim else 0)
        return Step(node, "constant")

    def _scales(self, node: Node) -> int:
        """How many constant scales a quantizer has; 1 where the scale is computed."""
        return int(self.graph.constants[node.inputs[1]].size) if node.inputs[1] in self.graph.constants else 1

    def node_format(self, node: Node) -> Format:
        """The scale and zero point of a QuantizeLinear or DequantizeLinear node on an activation."""
        constants = self.graph.constants
        if any(name not in constants for name in node.inputs[1:] if name):
            raise UnsupportedError(f"{node.name}: the scale of an activation has to be a constant")
        scale = constants[node.inputs[1]]
        zero_point = constants[node.inputs[2]] if len(node.inputs) > 2 else np.zeros((), np.uint8)
        if scale.size != 1:
            raise UnsupportedError(f"{node.name}: an activation has to have one scale, got {scale.size}")
        if zero_point.dtype not in (np.dtype(np.uint8), np.dtype(np.int8), np.dtype(np.int16), np.dtype(np.uint16)):
            raise UnsupportedError(f"{node.name}: an activation of {zero_point.dtype} has no integer kernel")
        limits = np.iinfo(zero_point.dtype)
        return Format(
            np.float32(scale.reshape(-1)[0]), int(zero_point.reshape(-1)[0]), int(limits.min), int(limits.max)
        )

    def _fused(self, node: Node) -> Step | None:
        bias, start = "", node
        if any(f.bits > self.arithmetic.widest for f in self._activation_formats(node)):
            return None
        if node.op == "MatMul" and (found := self._matrix_bias(node)) is not None:
            start, bias = found
        target = self._target(start)
        float_bias = self._float_bias(node)
        literal = self.arithmetic.rounds_floats(node.op)
        if not self._inputs_fit(node) or (target is None and float_bias is not None and not literal):
            return None
        if target is None or literal:
            step = self._to_float(node)
            if step is not None and target is not None and not target.seen_through:
                self._behind.add(id(target.quantize))
            if step is not None and float_bias is not None:
                self.constants[node.inputs[2]] = float_bias
            return step
        output = target.output
        if not _same_kind(node, self._activation_formats(node), output) or (
            output.signed and not self.arithmetic.signed and start.op in ("Conv", "MatMul")
        ):
            return None
        if (limits := self._own_limits(node, target)) is None:
            return None
        if node.op == "MatMul" and start is not node:
            self._done.add(id(start))
        if float_bias is not None:
            self.constants[node.inputs[2]] = float_bias
        self._done.update(id(n) for n in target.absorbed)
        if target.seen_through:
            self.formats[target.result] = output
        else:
            self._done.add(id(target.quantize))
            self._integers.add(target.result)
        return Step(node, "integer", output, target.result, target.seen_through, limits, bias)

    def _summed(self, add: Node) -> Step | None:
        """A convolution that adds a residual before it rounds takes the place of the Add; its own step goes."""
        products = {s.result: s for s in self.steps if s.rule == "to_float" and s.node.op == "Conv"}
        found = residual_sum(self.graph, add, set(products))
        if found is None or any(self._scales(n) != 1 for n in (*found.between[:1], found.behind[-1])):
            return None
        output = self.node_format(found.behind[-1])
        between = self.node_format(found.between[0]) if found.between else None
        if not is_known(self.formats.get(found.residual), output, between):
            return None
        gone, result = (found.convolution, *found.between), found.behind[-1].outputs[0]
        self.steps[:] = [s for s in self.steps if not any(s.node is n for n in gone)]  # the caller appends to it
        self._done.update(id(n) for n in found.behind)
        self._integers.add(result)
        self.steps.append(Step(found.convolution, "summed", output, result, residual=found.residual, between=between))
        return Step(add, "absorbed")

    def _exposed(self, quantize: Node) -> bool:
        readers = self.graph.readers.get(quantize.outputs[0], [])
        return any(reader.outputs[0] in self.graph.outputs for reader in readers)

    def _own_limits(self, node: Node, target: _Target) -> tuple[int, int] | None:
        """The levels that an op and what it absorbed leave, None for formats that its kernel does not take."""
        limits, output = target.limits, target.output
        if node.op in _KEEP_FORMAT and any(f != output for f in self._activation_formats(node)):
            return None
        if self.arithmetic.wide is not None and output.bits > 8 and node.op not in _WIDE:
            return None
        if node.op not in ("Relu", "Clip"):
            return limits
        own = self.absorb(node, output)
        return None if own is None else (max(limits[0], own[0]), min(limits[1], own[1]))

    def _to_float(self, node: Node) -> Step | None:
        """Products without a QuantizeLinear behind them: the integer sum is dequantized at once."""
        formats = self._activation_formats(node)
        literal = isinstance(self.arithmetic.requantize, ThroughFloat)
        if node.op not in (("Conv", "MatMul", "Gemm") if literal else ("MatMul", "Gemm")):
            return None
        if node.op == "MatMul" and any(f.signed for f in formats) and not self.arithmetic.signed:
            return None
        return Step(node, "to_float", result=node.outputs[0])

    def _inputs_fit(self, node: Node) -> bool:
        """Whether all inputs are dequantized in a way that the integer kernel of `node` takes."""
        match node.op:
            case "Conv" | "Gemm":
                weight = self.weight(node.inputs[1])
                fits = self.format(node.inputs[0]) is not None and weight is not None and self._per_output(node, weight)
                bias = self.weight(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] else None
                if len(node.inputs) > 2 and node.inputs[2] and (bias is None or bias.q.dtype != np.int32):
                    return fits and self._float_bias(node) is not None
                if node.op == "Conv" and bias is not None and not self._bias_fits(node, bias):
                    return False
                plain = node.attributes.get("beta", 1.0) == 1.0 and not node.attributes.get("transA", 0)
                return fits and plain
            case "MatMul":
                weight = self.weight(node.inputs[1])
                if weight is not None and not (weight.q.ndim == 2 and self._per_output(node, weight)):
                    return False
                right = weight is not None or self.format(node.inputs[1]) is not None
                return right and self.format(node.inputs[0]) is not None
            case "Add" | "Mul" | "Concat" | "Sub" | "Max" | "Min":
                return all(self.format(name) is not None for name in node.inputs)
            case "Pad" | "ReduceMean":
                fixed = all(not n or n in self.graph.constants or n in self.constants for n in node.inputs[1:])
                return fixed and node.inputs[0] in self.formats
            case _:
                return node.inputs[0] in self.formats

    def _per_output(self, node: Node, weight: Constant) -> bool:
        """Whether a weight has integers of a width with kernels, and scales that belong to output channels, the only
        ones that can leave the sum."""
        if weight.q.dtype.kind not in "iu" or weight.q.dtype.itemsize * 8 > self.arithmetic.widest:
            return False
        if weight.scale.size == 1:
            return True
        outputs = 0 if node.op == "Conv" or node.attributes.get("transB", 0) else 1
        return weight.axis % weight.q.ndim == outputs

    def _float_bias(self, node: Node) -> Constant | None:
        """A float bias as engines take it: rint(b / (s_x · s_w)), int32 (ONNX Runtime, while it loads a file), or
        itself, one step of its own size, where biases are added in float."""
        name = node.inputs[2] if node.op in ("Conv", "Gemm") and len(node.inputs) > 2 else ""
        x, weight = self.format(node.inputs[0]), self.weight(node.inputs[1]) if len(node.inputs) > 1 else None
        bias = self.graph.constants.get(name)
        if bias is None or bias.dtype != np.float32 or bias.ndim != 1 or x is None or weight is None:
            return None
        if self.graph.only_reader(name) is None:
            return None
        if isinstance(self.arithmetic.requantize, ThroughFloat):
            return Constant(np.ones(bias.shape, np.int32), bias, np.zeros(bias.shape, np.int32), 0)
        if not isinstance(self.arithmetic.requantize, FloatMultiplier):
            return None
        scale = np.broadcast_to((x.scale * weight.scale.reshape(-1)).astype(np.float32), bias.shape)
        limits = np.iinfo(np.int32)
        q = np.rint(bias / scale).astype(np.float64).clip(limits.min, limits.max).astype(np.int32)
        return Constant(q, scale, np.zeros(bias.shape, np.int32), 0)

    def _bias_fits(self, node: Node, bias: Constant) -> bool:
        """ONNX Runtime keeps a convolution in float whose bias is not at s_x · s_w, to 1 % and 1e-6 (measured)."""
        x, weight = self.format(node.inputs[0]), self.weight(node.inputs[1])
        if x is None or weight is None or not isinstance(self.arithmetic.requantize, FloatMultiplier):
            return True
        expected = np.broadcast_to(x.scale * weight.scale, bias.q.shape)
        return bool(np.isclose(np.broadcast_to(bias.scale, bias.q.shape), expected, rtol=1e-2, atol=1e-6).all())

    def _activation_formats(self, node: Node) -> list[Format]:
        names = node.inputs[:1] if node.op in ("Conv", "Gemm", "MatMul") else node.inputs
        return [f for name in names if (f := self.format(name)) is not None]

    def _matrix_bias(self, node: Node) -> tuple[Node, str] | None:
        """MatMul of matrices, then the addition of an int32 bias, is a Gemm; of more dimensions on some engines."""
        adding = self.graph.only_reader(node.outputs[0])
        matrices = self.graph.rank(node.inputs[0]) == 2 or self.arithmetic.any_rank
        if adding is None or adding.op != "Add" or not matrices:
            return None
        other = next((n for n in adding.inputs if n != node.outputs[0]), "")
        bias = self.weight(other)
        if bias is None or bias.q.dtype != np.int32 or bias.q.ndim != 1:
            return None
        return adding, other

    def _target(self, start: Node) -> _Target | None:
        """Follow the output of `start` to its QuantizeLinear, over what is absorbed and what it travels back over."""
        tensor, chain = start.outputs[0], []
        while True:
            reader = self.graph.only_reader(tensor)
            if reader is None or len(reader.outputs) != 1 or reader.inputs[0] != tensor:
                return None
            if reader.op == "QuantizeLinear":
                if self._scales(reader) != 1:
                    return None
                break
            if reader.op not in TRAVELS and reader.op not in ("Relu", "Clip"):
                return None
            chain.append(reader)
            tensor = reader.outputs[0]
        output = self.node_format(reader)
        limits = (output.low, output.high)
        absorbed: list[Node] = []
        for node in chain:
            if node.op in TRAVELS:
                break
            if (found := self.absorb(node, output)) is None:
                return None
            limits = (max(limits[0], found[0]), min(limits[1], found[1]))
            absorbed.append(node)
        if any(n.op not in TRAVELS and self.absorb(n, output) is None for n in chain):
            return None
        seen_through = len(absorbed) < len(chain)
        last = absorbed[-1].outputs[0] if absorbed else start.outputs[0]
        result = last if seen_through else reader.outputs[0]
        return _Target(reader, output, tuple(absorbed), result, seen_through, limits)

    def absorb(self, node: Node, output: Format) -> tuple[int, int] | None:
        """The levels that Relu or Clip leaves, or None where the engine keeps the op (and all before it) in float.

        ONNX Runtime drops a Relu whose zero point is the lowest level, and a Clip that clips nothing more than
        QuantizeLinear does; others are float ops to it. Fixed-point engines clamp the integers in any case.
        """
        low, high = (0.0, None) if node.op == "Relu" else self._clip_limits(node)
        nearest = _half_away if isinstance(self.arithmetic.quantize, HalfAway) else np.rint
        levels = [
            end if value is None else int(nearest(np.float32(value) / output.scale)) + output.zero_point
            for value, end in ((low, output.low), (high, output.high))
        ]
        redundant = levels[0] <= output.low and levels[1] >= output.high
        if redundant or self.arithmetic.clamps:
            return levels[0], levels[1]
        return None

    def _clip_limits(self, node: Node) -> tuple[float | None, float | None]:
        limits: list[float | None] = [node.attributes.get("min"), node.attributes.get("max")]
        for i, name in enumerate(node.inputs[1:3]):
            if name:
                if name not in self.graph.constants:
                    raise UnsupportedError(f"{node.name}: the limits of a Clip have to be constants")
                limits[i] = float(self.graph.constants[name])
        return limits[0], limits[1]


def _same_kind(node: Node, formats: list[Format], output: Format) -> bool:
    """Whether all have one width, and one sign; products may go from unsigned to signed bytes and back (measured)."""
    one_width = all(f.high - f.low == output.high - output.low for f in formats)
    return one_width and (node.op in ("Conv", "Gemm") or all(f.signed == output.signed for f in formats))


def _half_away(v: np.float32) -> np.float32:
    return np.float32(np.sign(v) * np.floor(np.abs(v) + np.float32(0.5)))
