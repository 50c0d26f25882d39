"""From a planned QDQ graph to a LiteRT file: which tensors are integers, and in which order dimensions lie."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
import onnx
import torch

from isobit.core.errors import UnsupportedError
from isobit.export.litert_builder import Builder, Shape
from isobit.integer.model import Graph, Node
from isobit.integer.plan import Plan
from isobit.integer.requantize import quantize
from isobit.integer.step import Step
from isobit.integer.values import Constant, Format

CHANNELS_LAST = (0, 2, 3, 1)
CHANNELS_FIRST = (0, 3, 1, 2)


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor of the file. `shape` is in the order of the network; images may lie with their channels last.

    `format` is that of the graph, whose bytes may be unsigned; the file holds those 128 lower.
    """

    index: int
    name: str
    shape: Shape
    format: Format | None = None
    channels_last: bool = False
    dtype: Any = np.float32
    constant: np.ndarray | None = None

    @property
    def stored(self) -> Shape:
        """The shape as it lies in the file."""
        return tuple(self.shape[i] for i in CHANNELS_LAST) if self.channels_last else self.shape


@dataclass(frozen=True, slots=True)
class Call:
    """One op to be written: its node, and the tensor `result` that it has to give, integers where it has a format."""

    node: Node
    result: str
    format: Format | None = None
    activation: str = "NONE"
    bias: str = ""

    @property
    def integer(self) -> bool:
        """Whether the op computes with integers."""
        return self.format is not None

    def ints(self, name: str, default: Sequence[int]) -> list[int]:
        """A list attribute of the node."""
        return self.node.ints(name, default)


@final
class Translation:
    """Everything known while a graph is translated, step by step."""

    def __init__(self, graph: Graph, plan: Plan, shapes: Mapping[str, Shape]) -> None:
        self.graph, self.plan, self.shapes = graph, plan, shapes
        self.builder = Builder()
        self.values: dict[str, Value] = {}
        self._floats: dict[int, Value] = {}
        self._turned: dict[int, Value] = {}

    def input(self, name: str) -> int:
        """An input of the file, as the network takes it."""
        return self.result(name, None, channels_last=False, dtype=self.graph.input_types[name]).index

    def output(self, name: str) -> int:
        """An output of the file: in float, in the order of the network, under its own name."""
        value = self.laid_out(self.values[name], channels_last=False)
        if value.format is not None:
            value = self.dequantized(value, name)
        self.builder.graph.tensors[value.index].name = name
        return value.index

    def result(
        self,
        name: str,
        format_: Format | None,
        *,
        channels_last: bool,
        shape: Shape | None = None,
        dtype: Any = np.float32,
    ) -> Value:
        """A new tensor for the result `name` of an op."""
        shape = self.shape(name) if shape is None else shape
        value = Value(-1, name, shape, format_, channels_last, dtype)
        self.values[name] = replace(value, index=self._tensor(value))
        return self.values[name]

    def scratch(self, name: str, shape: Shape, format_: Format | None, *, channels_last: bool = False) -> Value:
        """A new tensor that no node of the network has."""
        value = Value(-1, name, shape, format_, channels_last)
        return replace(value, index=self._tensor(value))

    def shape(self, name: str) -> Shape:
        """The shape of a tensor of the network. Raises UnsupportedError where it is not known."""
        if name not in self.shapes:
            raise UnsupportedError(f"LiteRT: the shape of {name} is not known before the network runs")
        return self.shapes[name]

    def operand(self, name: str, *, integer: bool) -> Value:
        """An activation that an op reads: as integers, or in float. Constants become tensors with data."""
        if name in self.values:
            return self.values[name] if integer else self.dequantized(self.values[name])
        constant = self.plan.constants.get(name)
        if integer and constant is not None and constant.format is not None:
            return self.array(name, constant.q, constant.format)
        return self.array(name, self.floats(name), None)

    def dequantized(self, value: Value, name: str = "") -> Value:
        """The float values behind integers; each tensor is dequantized once."""
        if value.format is None:
            return value
        if value.index not in self._floats:
            floats = self.scratch(
                name or f"{value.name}/dequantized", value.shape, None, channels_last=value.channels_last
            )
            self.builder.op("DEQUANTIZE", [value.index], [floats.index], version=2)
            self._floats[value.index] = floats
        return self._floats[value.index]

    def floats(self, name: str) -> np.ndarray:
        """A constant of the network as floats or as the integers that it is, such as axes and shapes."""
        if name in self.plan.constants:
            return self.plan.constants[name].floats
        if name not in self.graph.constants:
            raise UnsupportedError(f"LiteRT: {name} has to be a constant")
        return self.graph.constants[name]

    def array(self, name: str, data: np.ndarray, format_: Format | None) -> Value:
        """A tensor with data."""
        data = data.astype(np.int32) if data.dtype == np.int64 and np.abs(data).max(initial=0) < 1 << 31 else data
        data = data.astype(np.float32) if data.dtype == np.float64 else data
        if format_ is None:
            return Value(self.builder.constant(name, data), name, data.shape, dtype=data.dtype, constant=data)
        data = (data.astype(np.int16) - lowered(format_)).astype(np.int8)
        index = self.builder.tensor(name, data.shape, np.int8, data=data, grid=_grid(format_))
        return Value(index, name, data.shape, format_)

    def weight(self, name: str) -> Constant:
        """The integers of a weight. Raises UnsupportedError for one that has a zero point."""
        weight = self.plan.constants[name]
        if weight.zero_point.any():
            raise UnsupportedError(
                f"LiteRT: {name} has a zero point, and LiteRT's weights have none: choose symmetric weights"
            )
        return weight

    def laid_out(self, value: Value, *, channels_last: bool) -> Value:
        """The same image with its channels last, or in the order of the network. Other tensors stay as they are."""
        if value.channels_last == channels_last or len(value.shape) != 4:
            return value
        if value.index in self._turned:
            return self._turned[value.index]
        word = "last" if channels_last else "first"
        turned = self.scratch(f"{value.name}/channels_{word}", value.shape, value.format, channels_last=channels_last)
        if value.shape[2:] == (1, 1) or value.shape[1] == 1:  # one pixel or one channel: nothing moves
            self.reshape(value, turned)
        else:
            order = np.array(CHANNELS_LAST if channels_last else CHANNELS_FIRST, np.int32)
            axes = self.builder.constant(f"{turned.name}/order", order)
            self.builder.op("TRANSPOSE", [value.index, axes], [turned.index], version=2)
        self._turned[value.index], self._turned[turned.index] = turned, value
        return turned

    def reshape(self, value: Value, to: Value) -> None:
        """RESHAPE to the shape that `to` has in the file. Raises UnsupportedError for two sizes that are not fixed."""
        if to.stored.count(None) > 1:
            raise UnsupportedError(f"LiteRT: {to.name} has more than one size that depends on the batch")
        sizes = np.array([-1 if size is None else size for size in to.stored], np.int32)
        shape = self.builder.constant(f"{to.name}/shape", sizes)
        self.builder.op("RESHAPE", [value.index, shape], [to.index], newShape=[int(s) for s in sizes])

    def quantize(self, value: Value, name: str, format_: Format) -> Value:
        """QUANTIZE, through float where it has another format; nothing where it has this one already."""
        if value.format == format_:
            self.values[name] = value
            return value
        if value.constant is not None and value.format is None:
            return self._quantized_constant(value, name, format_)
        value = self.dequantized(value)
        found = self.result(name, format_, channels_last=value.channels_last, shape=value.shape)
        self.builder.op("QUANTIZE", [value.index], [found.index], version=2)
        return found

    def limit(self, value: Value, name: str, low: float | None, high: float | np.ndarray | None) -> None:
        """The integers of `value` kept within `low` and `high`, as `name`."""
        assert value.format is not None
        bounds = [("MAXIMUM", low), ("MINIMUM", high)]
        wanted = [(op, bound) for op, bound in bounds if bound is not None]
        for i, (op, bound) in enumerate(wanted):
            last = i + 1 == len(wanted)
            to = self.result(name, value.format, channels_last=value.channels_last, shape=value.shape) if last else (
                self.scratch(f"{name}/{op.lower()}", value.shape, value.format, channels_last=value.channels_last)
            )  # fmt: skip
            data = np.asarray(bound)
            if data.ndim == 4 and value.channels_last:
                data = data.transpose(CHANNELS_LAST)
            limit = self.array(f"{to.name}/limit", data, value.format)
            self.builder.op(op, [value.index, limit.index], [to.index], version=2)
            value = to
        self.values[name] = value

    def activation(self, step: Step) -> str:
        """The activation that an integer op applies itself: none where its levels end there anyway."""
        assert step.output is not None
        if step.limits == (step.output.low, step.output.high):
            return "NONE"
        relu = (step.output.zero_point, step.output.high)
        six = int(np.rint(np.float32(6) / step.output.scale)) + step.output.zero_point
        return {relu: "RELU", (step.output.zero_point, six): "RELU6"}.get(step.limits, "LIMITS")

    def _tensor(self, value: Value) -> int:
        if value.format is None:
            return self.builder.tensor(value.name, value.stored, value.dtype)
        return self.builder.tensor(value.name, value.stored, np.int8, grid=_grid(value.format))

    def _quantized_constant(self, value: Value, name: str, format_: Format) -> Value:
        """The integers of a constant that the network quantizes each time."""
        assert value.constant is not None
        q = quantize(torch.tensor(value.constant), format_).numpy()
        self.values[name] = self.array(name, q, format_)
        return self.values[name]


def lowered(format_: Format) -> int:
    """How much lower than in the graph the integers of a format lie in the file: 128 where they are unsigned."""
    return 0 if format_.signed else 128


def _grid(format_: Format) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(format_.scale), np.asarray(format_.zero_point - lowered(format_))


READS_SHAPE = frozenset({"Expand", "Reshape"})
"""Ops whose second input says what shape comes out, which is known without it."""


def needed(graph: Graph) -> set[int]:
    """The nodes, by their identity, that the outputs are computed from; what only computes shapes is none of them."""
    found: set[int] = set()
    waiting = list(graph.outputs)
    while waiting:
        node = graph.producers.get(waiting.pop())
        if node is None or id(node) in found:
            continue
        found.add(id(node))
        waiting += node.inputs[:1] if node.op in READS_SHAPE else node.inputs
    return found


def static_shapes(model: onnx.ModelProto) -> dict[str, Shape]:
    """The shape of each tensor where all sizes are known; None is what grows with the batch."""
    found: list[dict[str, tuple[int, ...]]] = []
    for batch in (2, 3):
        fixed = onnx.ModelProto()
        fixed.CopyFrom(model)
        del fixed.graph.value_info[:]
        for value in fixed.graph.input:
            dim = value.type.tensor_type.shape.dim[0]
            if not dim.HasField("dim_value"):
                dim.dim_value = batch
        for value in fixed.graph.output:
            value.type.tensor_type.ClearField("shape")
        inferred = onnx.shape_inference.infer_shapes(fixed, data_prop=True).graph
        values = (*inferred.input, *inferred.value_info, *inferred.output)
        found.append({v.name: sizes for v in values if (sizes := _sizes(v)) is not None})
    two, three = found
    return {
        name: tuple(a if a == b else None for a, b in zip(two[name], three[name], strict=True))
        for name in two.keys() & three.keys()
    }


def _sizes(value: onnx.ValueInfoProto) -> tuple[int, ...] | None:
    kind: Any = value.type.tensor_type
    if not kind.HasField("shape") or not all(d.HasField("dim_value") for d in kind.shape.dim):
        return None
    return tuple(d.dim_value for d in kind.shape.dim)
