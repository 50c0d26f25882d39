"""From a QDQ graph to a PT2E module: ATen ops on floats, between quantize and dequantize ops."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, fx

from isobit.core.errors import UnsupportedError
from isobit.export.litert_builder import Shape
from isobit.integer.model import Graph, Node
from isobit.integer.values import Constant

ATEN = torch.ops.aten

DTYPES = {
    np.dtype(np.uint8): torch.uint8,
    np.dtype(np.int8): torch.int8,
    np.dtype(np.uint16): torch.uint16,
    np.dtype(np.int16): torch.int16,
}
"""Types of quantized tensors."""


@dataclass(frozen=True, slots=True)
class Grid:
    """scale, zero_point, quant_min, quant_max and dtype, as quantize_per_tensor and dequantize_per_tensor take them."""

    scale: float
    zero_point: int
    low: int
    high: int
    dtype: torch.dtype

    @property
    def lowered(self) -> "Grid":
        """The same values as signed bytes: all integers are 128 lower."""
        return Grid(self.scale, self.zero_point - 128, self.low - 128, self.high - 128, torch.int8)

    @property
    def arguments(self) -> tuple[float, int, int, int, torch.dtype]:
        """In the order of the ops."""
        return self.scale, self.zero_point, self.low, self.high, self.dtype


@final
class Translation:
    """Everything known while a graph is translated, op by op."""

    def __init__(self, graph: Graph, shapes: Mapping[str, Shape]) -> None:
        self.graph, self.shapes = graph, shapes
        self.signed = any(
            self._is_signed(node) for node in graph.nodes
        )  # then all are: backends take bytes of one sign
        self.constants: dict[str, Constant] = {}
        self.fx = fx.Graph()
        self.root: dict[str, Tensor] = {}
        self.done: set[int] = set()
        self.undone: set[int] = set()
        self.places: list[tuple[str, bool, int]] = []
        self._floats: dict[str, fx.Node] = {}
        self._integers: dict[str, tuple[fx.Node, Grid]] = {}
        self._views: dict[str, str] = {}
        self._kept: dict[str, fx.Node] = {}

    def input(self, name: str) -> None:
        """An input of the program."""
        self._floats[name] = self.fx.placeholder(_word(name))

    def call(self, function: Any, arguments: Sequence[Any], node: Node, word: str = "") -> fx.Node:
        """An op, named after the node that it is for."""
        name = _word(node.name) + (f"_{word}" if word else "")
        return self.fx.create_node("call_function", function, tuple(arguments), {}, name=name)

    def result(self, node: Node, y: fx.Node, *, of: str | None = None) -> None:
        """Let `y` be the float result of `node`, or the tensor `of`."""
        self._floats[of or node.outputs[0]] = y

    def shape(self, name: str) -> Shape:
        """The shape of a tensor; None is the size of the batch. Raises UnsupportedError where it is not known."""
        if name in self.graph.constants:
            return tuple(self.graph.constants[name].shape)
        if name in self.constants:
            return tuple(self.constants[name].q.shape)
        if name not in self.shapes:
            raise UnsupportedError(f"PT2E: the shape of {name} is not known before the network runs")
        return self.shapes[name]

    def fixed(self, name: str) -> np.ndarray:
        """A constant of the network as floats, or as the integers that it is, such as axes and shapes."""
        if name in self.constants:
            return self.constants[name].floats
        if name not in self.graph.constants:
            raise UnsupportedError(f"PT2E: {name} has to be a constant")
        return self.graph.constants[name]

    def is_constant(self, name: str) -> bool:
        """Whether a tensor is known before the network runs."""
        return name in self.constants or name in self.graph.constants

    def is_integer(self, name: str) -> bool:
        """Whether a tensor holds the integers of a quantizer."""
        return name in self._integers

    def read(self, name: str, node: Node) -> fx.Node:
        """The floats of a tensor as `node` reads them: behind a dequantize op of its own, as PT2E has it."""
        if name in self._views:
            return self._dequantized(*self._integers[self._views[name]], node)
        if name in self._floats:
            return self._floats[name]
        if name in self.constants:
            return self.dequantized(self.constants[name], name, _word(name))
        if name in self._integers:
            raise UnsupportedError(f"PT2E: {node.name} ({node.op}) computes on integers and has no form")
        return self.keep(name, self.graph.constants[name])

    def padded(self, name: str, node: Node, pads: Sequence[int], *, lowest: bool = False) -> fx.Node:
        """The same with zeros around it, or the lowest value: of a quantized tensor the integers are padded, so that
        the op reads those."""
        if name not in self._views:
            value = -float("inf") if lowest else 0.0
            return self.call(ATEN.constant_pad_nd.default, (self.read(name, node), list(pads), value), node, "pad")
        x, grid = self._integers[self._views[name]]
        level = grid.low if lowest else grid.zero_point
        wider = self.call(ATEN.constant_pad_nd.default, (x, list(pads), level), node, "pad")
        return self._dequantized(wider, grid, node)

    def _dequantized(self, x: fx.Node, grid: Grid, node: Node) -> fx.Node:
        function = torch.ops.quantized_decomposed.dequantize_per_tensor.default
        return self.call(function, (x, *grid.arguments), node, "dequantize")

    def lowered(self, dtype: Any) -> int:
        """How much lower than in the graph integers of a type lie in the program: 128 where bytes become signed."""
        return 128 if self.signed and dtype in (np.uint8, torch.uint8) else 0

    def _is_signed(self, node: Node) -> bool:
        zero_point = self.graph.constants.get(node.inputs[2]) if len(node.inputs) > 2 else None
        return node.op == "QuantizeLinear" and zero_point is not None and zero_point.dtype == np.int8

    def integers(self, name: str) -> tuple[fx.Node, Grid]:
        """The integers of a quantizer."""
        return self._integers[name]

    def quantized(self, name: str, x: fx.Node, grid: Grid) -> None:
        """Let `x` be the integers of the tensor `name`."""
        self._integers[name] = x, grid

    def view(self, name: str, of: str) -> None:
        """Let the tensor `name` be the dequantized integers `of`."""
        self._views[name] = of

    def same(self, name: str, of: str) -> None:
        """Let the tensor `name` be the tensor `of`."""
        if of in self._views:
            self._views[name] = self._views[of]
        else:
            self._floats[name] = self._floats[of]

    def keep(self, name: str, data: np.ndarray) -> fx.Node:
        """A buffer of the program; one for each name."""
        if name not in self._kept:
            tensor = torch.from_numpy(np.array(data, order="C"))
            path = _path(name)
            while path in self.root or any(p.startswith(f"{path}.") for p in self.root):
                path += "_"
            self.root[path] = tensor
            self._kept[name] = self.fx.create_node("get_attr", path, name=_word(name))
        return self._kept[name]

    def dequantized(self, weight: Constant, name: str, word: str) -> fx.Node:
        """A weight behind dequantize_per_channel, or dequantize_per_tensor where it has one scale."""
        if weight.q.dtype not in (np.dtype(np.int8), np.dtype(np.uint8)):
            return self.keep(name, weight.floats)
        limits, kind = np.iinfo(weight.q.dtype), DTYPES[weight.q.dtype]
        q = self.keep(name, weight.q)
        ends = int(limits.min), int(limits.max), kind
        if weight.scale.size == 1:
            scale, zero_point = float(weight.scale.reshape(-1)[0]), int(weight.zero_point.reshape(-1)[0])
            function = torch.ops.quantized_decomposed.dequantize_per_tensor.default
            arguments: tuple[Any, ...] = (q, scale, zero_point, *ends)
        else:
            scales = self.keep(f"{name}_scale", weight.scale.astype(np.float32))
            zeros = np.broadcast_to(weight.zero_point.astype(np.int64), weight.scale.shape)
            arguments = (q, scales, self.keep(f"{name}_zero_point", zeros), weight.axis % weight.q.ndim, *ends)
            function = torch.ops.quantized_decomposed.dequantize_per_channel.default
        return self.fx.create_node("call_function", function, arguments, {}, name=f"{word}_dequantize")

    def module(self) -> fx.GraphModule:
        """The whole module; it returns the outputs of the network in float."""
        found = [self._output(name) for name in self.graph.outputs]
        self.fx.output(found[0] if len(found) == 1 else tuple(found))
        self.fx.eliminate_dead_code()
        return fx.GraphModule(self.root, self.fx)

    def _output(self, name: str) -> fx.Node:
        producer = self.graph.producers.get(name)
        if producer is None or self.is_integer(name):
            raise UnsupportedError(f"PT2E: the output {name} holds integers, or nothing computes it")
        return self.read(name, producer)


def _word(name: str) -> str:
    """A name as torch.fx takes it."""
    name = name.partition(".DequantizeLinear")[0]
    name = name.replace(".QuantizeLinear", "_quantize").replace("QuantizeLinear", "quantize")
    plain = "".join(c if c.isascii() and c.isalnum() else "_" for c in name).strip("_")
    return plain if plain and not plain[0].isdigit() else f"layer_{plain}"


def _path(name: str) -> str:
    """A name as a module takes it: parts between points."""
    return ".".join("".join(c if c.isascii() and (c.isalnum() or c == "_") else "_" for c in p) or "_"
                    for p in name.split("."))  # fmt: skip
