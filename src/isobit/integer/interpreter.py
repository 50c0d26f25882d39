"""The integer-only reference: evaluates an exported QDQ graph as the engine does, integer by integer."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import final

import numpy as np
import onnx
import torch
from torch import Tensor

from isobit.core.arithmetic import FLOAT32, Arithmetic, InverseOfInverse
from isobit.core.errors import ArtifactError, UnsupportedError
from isobit.integer import kernels
from isobit.integer.accumulate import ieee_float32
from isobit.integer.elementwise import converted
from isobit.integer.float_ops import EXACT, clip_limits, evaluate
from isobit.integer.low_bit import Inputs, rounds_input
from isobit.integer.model import described_by, read_graph
from isobit.integer.plan import Plan
from isobit.integer.requantize import quantize
from isobit.integer.step import Step
from isobit.integer.values import Constant, Integers, Quantized, Value


@dataclass(frozen=True, eq=False)
class ReferenceRun:
    """What the reference computed.

    `outputs` are the file's outputs, dequantized as the file says. `integers` holds the result of every
    QuantizeLinear node by its name. `float_ops` names the ops that were evaluated in float32 and whose last bits
    differ between engines (LayerNormalization, GELU, …): with one of them, equality with an engine is not proved.
    """

    outputs: list[np.ndarray]
    integers: dict[str, np.ndarray] = field(repr=False)
    float_ops: tuple[str, ...] = ()

    @property
    def exact(self) -> bool:
        """Whether every op has one right result."""
        return not self.float_ops


@final
class Reference:
    """A file, read and planned once, to be run on many batches."""

    def __init__(self, source: Path | str | onnx.ModelProto, arithmetic: Arithmetic = FLOAT32) -> None:
        self.graph = read_graph(source)
        self.arithmetic = arithmetic
        self.plan = Plan(self.graph, arithmetic)

    @property
    def float_ops(self) -> tuple[str, ...]:
        """See ReferenceRun."""
        return tuple(
            s.node.name
            for s in self.plan.steps
            if (s.rule == "float" and s.node.op not in EXACT) or kernels.is_approximate(s.node, self.arithmetic)
        )

    @property
    def rounded_inputs(self) -> tuple[str, ...]:
        """The products with packed weights whose kernel rounds activations that the file leaves in float."""
        return tuple(s.node.name for s in self.plan.steps if rounds_input(s.node))

    def run(self, inputs: Sequence[np.ndarray], *, keep: Sequence[str] | None = None) -> ReferenceRun:
        """Evaluate one batch. `keep` limits the integers that are returned to these names; None keeps all.

        Raises ArtifactError for a wrong number of inputs, UnsupportedError for an op that cannot be evaluated.
        """
        if len(inputs) != len(self.graph.inputs):
            raise ArtifactError(f"the file takes {len(self.graph.inputs)} inputs, got {len(inputs)}")
        env: dict[str, Value] = {}
        for name, x in zip(self.graph.inputs, inputs, strict=True):
            env[name] = self._input(name, torch.from_numpy(np.ascontiguousarray(x)))
        env |= self.plan.constants
        left = self.graph.use_counts()
        integers: dict[str, np.ndarray] = {}
        with ieee_float32():
            for step in self.plan.steps:
                with described_by(step.node):
                    env |= self._outputs(step, env)
                self._store(step, env, integers, keep)
                self._free(step, env, left)
            outputs = [_floats(self._value(name, env)).numpy() for name in self.graph.outputs]
        return ReferenceRun([np.array(y) for y in outputs], integers, self.float_ops)

    def _input(self, name: str, x: Tensor) -> Value:
        """An input; integers where the file dequantizes it."""
        if name not in self.plan.integer_inputs or x.is_floating_point():
            return x
        limits = torch.iinfo(x.dtype)
        return Integers(x.float(), limits.min, limits.max)

    def _outputs(self, step: Step, env: dict[str, Value]) -> dict[str, Value]:
        node = step.node
        match step.rule:
            case "constant" | "absorbed":
                return {}
            case "quantize":
                assert step.output is not None
                q = self._quantized(self._value(node.inputs[0], env), step)
                return {step.result: Integers(q, step.output.low, step.output.high)}
            case "dequantize":
                assert step.output is not None
                x = self._value(node.inputs[0], env)
                if not isinstance(x, Integers):
                    x = Integers(_floats(x).float(), step.output.low, step.output.high)
                return {node.outputs[0]: Quantized(x.q, step.output)}
            case "integer":
                assert step.output is not None
                q = self._fused(step, env)
                if step.limits != (step.output.low, step.output.high):
                    q = q.clamp(*step.limits)
                seen = Quantized(q, step.output)
                return {step.result: seen if step.seen_through else Integers(q, step.output.low, step.output.high)}
            case "to_float":
                return {step.result: kernels.product_to_float(node, self._operands(step, env), self.arithmetic)}
            case "summed":
                assert step.output is not None
                residual = self._value(step.residual, env)
                assert isinstance(residual, Quantized)
                q = kernels.conv_with_residual(
                    node, self._operands(step, env), residual, step.output, self.arithmetic, between=step.between
                )
                return {step.result: Integers(q, step.output.low, step.output.high)}
            case "travel":
                x = self._value(node.inputs[0], env)
                assert isinstance(x, Quantized)
                rest = [self._tensor(name, env) for name in node.inputs[1:]]
                (q,) = evaluate(node, [x.q, *rest], self.graph.opset)
                return {node.outputs[0]: replace(x, q=q)}
            case "integers":
                return self._on_integers(step, env)
            case "looked_up":
                table, index = self._tensor(node.inputs[0], env), self._tensor(node.inputs[1], env)
                assert table is not None and index is not None
                limits = torch.iinfo(table.dtype)
                return {node.outputs[0]: Integers(table[index.long()].float(), limits.min, limits.max)}
            case "float":
                given: Inputs = [self._tensor(name, env) for name in node.inputs]
                return dict(zip(filter(None, node.outputs), evaluate(node, given, self.graph.opset), strict=False))

    def _quantized(self, x: Value, step: Step) -> Tensor:
        assert step.output is not None
        rules = self.arithmetic.of(step.output.bits)
        if isinstance(x, Quantized):
            return converted(x, step.output, rules)
        own = rules.quantize_products if step.behind_product else None
        if step.exposed and isinstance(own, InverseOfInverse):
            own = None  # the kernel that rounds scales back, too
        return quantize(_floats(x), step.output, own or rules.quantize)

    def _fused(self, step: Step, env: dict[str, Value]) -> Tensor:
        assert step.output is not None
        kernel, operands = kernels.KERNELS[step.node.op], self._operands(step, env)
        if step.output.signed and self.arithmetic.twins:
            # ONNX Runtime rewrites int8 activations as uint8 first; where a kernel adds the zero point in float32,
            # as Add and Mul do, this decides ties.
            unsigned = [x.twin if isinstance(x, Quantized) else x for x in operands]
            return kernel(step.node, unsigned, step.output.twin, self.arithmetic) - 128
        return kernel(step.node, operands, step.output, self.arithmetic.of(step.output.bits))

    def _operands(self, step: Step, env: dict[str, Value]) -> list[Quantized | Constant | Tensor]:
        names = [*(n for n in step.node.inputs if n), *([step.bias] if step.bias else [])]
        found: list[Quantized | Constant | Tensor] = []
        for name in names:
            x = self._value(name, env)
            assert not isinstance(x, Integers)
            found.append(x)
        return found

    def _on_integers(self, step: Step, env: dict[str, Value]) -> dict[str, Value]:
        x = self._value(step.node.inputs[0], env)
        assert isinstance(x, Integers)
        rest = [self._tensor(name, env) for name in step.node.inputs[1:]]
        if step.node.op == "Clip":
            low, high = clip_limits(step.node, [x.q, *rest])
            return {step.node.outputs[0]: replace(x, q=x.q.clamp(low, high))}
        if step.node.op == "Min":
            return {step.node.outputs[0]: replace(x, q=torch.minimum(x.q, _float(rest[0])))}
        found = evaluate(step.node, [x.q, *rest], self.graph.opset)
        return {name: replace(x, q=q) for name, q in zip(step.node.outputs, found, strict=False)}

    def _store(
        self, step: Step, env: dict[str, Value], integers: dict[str, np.ndarray], keep: Sequence[str] | None
    ) -> None:
        value = env.get(step.result or step.node.outputs[0])
        if isinstance(value, Tensor) and step.node.op == "QuantizeLinear" and keep is None:
            integers[step.node.outputs[0]] = value.numpy()
        if isinstance(value, Integers) and step.result and (keep is None or step.result in keep):
            kind = _SMALLEST[value.low < 0, value.high > 255 or value.low < -128]
            integers[step.result] = value.q.to(kind).numpy()

    def _free(self, step: Step, env: dict[str, Value], left: Counter[str]) -> None:
        for name in dict.fromkeys(step.node.inputs):
            left[name] -= 1
            if left[name] <= 0 and name not in self.plan.constants:
                env.pop(name, None)

    def _value(self, name: str, env: dict[str, Value]) -> Value:
        if name in env:
            return env[name]
        if name in self.graph.constants:
            return torch.from_numpy(np.array(self.graph.constants[name]))
        raise UnsupportedError(f"the tensor {name!r} is read before it is written")

    def _tensor(self, name: str, env: dict[str, Value]) -> Tensor | None:
        return _floats(self._value(name, env)) if name else None


_SMALLEST = {
    (False, False): torch.uint8,
    (True, False): torch.int8,
    (False, True): torch.int32,
    (True, True): torch.int16,
}


def _float(x: Tensor | None) -> Tensor:
    assert x is not None
    return x.float()


def run_reference(
    source: Path | str | onnx.ModelProto, inputs: Sequence[np.ndarray], arithmetic: Arithmetic = FLOAT32
) -> ReferenceRun:
    """Evaluate an exported QDQ file with integers. For many batches keep a `Reference`."""
    return Reference(source, arithmetic).run(inputs)


def _floats(value: Value) -> Tensor:
    match value:
        case Quantized():
            return value.floats
        case Constant():
            return torch.from_numpy(value.floats)
        case Integers():
            return value.q
        case _:
            return value
