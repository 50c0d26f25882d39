"""The graph that grows while a file is imported: each call is also run on two sets of example inputs."""

import operator
from collections.abc import Callable, Iterable
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.node import map_aggregate

from isobit.core.errors import UnsupportedError
from isobit.graph.from_onnx.naming import Naming
from isobit.graph.from_onnx.op import Op
from isobit.graph.from_onnx.values import Pair, Size, Value

EXAMPLES = "examples"
"""Key in the meta of a node: its results for both sets of example inputs, without data."""

NAME = "onnx_name"
"""Key in the meta of a node: the name of the file's node that it comes from."""


@final
class Builder:
    """Makes nodes. What depends on constants alone is computed at once.

    `batch` is the batch size that the file is written for, None where it is free in the file. It is freed here: the
    examples have two others, of which `samples` is the first, and `freed` says where the graph had to be changed.
    """

    def __init__(self, batch: int | None, samples: int) -> None:
        self.graph, self.root, self.batch, self.samples = fx.Graph(), nn.Module(), batch, samples
        self.naming = Naming(self.root)
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.freed: list[str] = []
        self.notes: dict[str, None] = {}
        self._constants: dict[tuple[Any, ...], tuple[Tensor, fx.Node]] = {}
        self._made: dict[tuple[Any, ...], str] = {}
        self.op: Op | None = None

    # -- nodes

    def placeholder(self, name: str, dtype: torch.dtype, shapes: tuple[list[int], list[int]]) -> fx.Node:
        """An input of the network, of one shape in each set of examples."""
        node = self.graph.placeholder(self.naming.argument(name))
        with self.mode:
            node.meta[EXAMPLES] = tuple(torch.empty(shape, dtype=dtype) for shape in shapes)
        return node

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Value:
        """Call a function that gives one tensor."""
        (found,) = self.calls(function, *args, **kwargs)
        return found

    def calls(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> list[Value]:
        """Call a function; all its results."""
        if not _free(args, kwargs):
            return _plain(function(*args, **kwargs))
        examples = self._run(function, args, kwargs)
        node = self.graph.call_function(function, self._nodes(args), self._nodes(kwargs))
        return self._finished(node, examples)

    def method(self, name: str, x: Value, *args: Any) -> Value:
        """Call a method of a tensor."""
        if not _free((x, *args), {}):
            return _plain(getattr(x, name)(*args))[0]
        examples = self._run(lambda x, *rest: getattr(x, name)(*rest), (x, *args), {})
        node = self.graph.call_method(name, self._nodes((x, *args)))
        return self._finished(node, examples)[0]

    def layer(self, op: Op, module: nn.Module, *args: Value) -> Value:
        """Call a module, which gets the name of `op`; the same module again, where the file has one layer twice."""
        if not _free(args, {}):
            with torch.no_grad():
                return _plain(module(*args))[0]
        module.eval()
        examples = self._run(module, args, {})
        node = self.graph.call_module(self._place(op, module), self._nodes(args))
        return self._finished(node, examples)[0]

    def _place(self, op: Op, module: nn.Module) -> str:
        weights = tuple(n for n, v in zip(op.names, op.inputs, strict=True) if isinstance(v, Tensor))
        candidates = self.naming.candidates(op)
        key = (candidates[0] if not weights else (op.scope, weights), type(module), repr(module))
        if key in self._made:
            return self._made[key]
        name = self.naming.place(module, candidates)
        self._made[key] = name
        return name

    def _finished(self, node: fx.Node, examples: Pair) -> list[Value]:
        node.meta[EXAMPLES] = examples
        if self.op is not None:
            node.meta[NAME] = self.op
        if not isinstance(examples[0], (tuple, list)):
            return [node]
        picked: list[Value] = []
        for i in range(len(examples[0])):
            pick = self.graph.call_function(operator.getitem, (node, i))
            pick.meta[EXAMPLES] = (examples[0][i], examples[1][i])
            picked.append(pick)
        return picked

    # -- arguments

    def _run(self, function: Callable[..., Any], args: Any, kwargs: Any) -> Pair:
        with self.mode, torch.no_grad():
            first, second = (function(*example_of(args, i), **example_of(kwargs, i)) for i in (0, 1))
        return first, second

    def _nodes(self, args: Any) -> Any:
        return map_aggregate(_known(args), self._node)

    def _node(self, value: Any) -> Any:
        if isinstance(value, Size):
            return value.node
        return self.constant(value) if isinstance(value, Tensor) else value

    def constant(self, value: Tensor) -> fx.Node:
        """A node that reads a constant, which becomes a buffer of the network."""
        key = _key(value)
        if key in self._constants:
            return self._constants[key][1]
        wanted = next((n for n, v in self._inputs() if v is value), "constant")
        node = self.graph.get_attr(self.naming.buffer(value, wanted), type_expr=None)
        with self.mode:
            example = self.mode.from_tensor(value)
        node.meta[EXAMPLES] = (example, example)
        self._constants[key] = (value, node)  # the tensor too, so that its id stays taken
        return node

    def _inputs(self) -> Iterable[tuple[str, Value | None]]:
        return () if self.op is None else zip(self.op.names, self.op.inputs, strict=True)

    # -- shapes

    def size(self, x: Value, axis: int) -> Any:
        """The length of an axis: an int, or a `Size` where it is free."""
        if not isinstance(x, fx.Node):
            return int(x.shape[axis])
        first, second = (int(e.shape[axis]) for e in x.meta[EXAMPLES])
        if first == second:
            return first
        axis %= x.meta[EXAMPLES][0].dim()
        return Size(self.graph.call_method("size", (x, axis)), (first, second))

    def shape(self, x: Value) -> list[Any]:
        """All lengths."""
        return [self.size(x, axis) for axis in range(rank(x))]

    def has_free_batch(self, x: Value) -> bool:
        """Whether a value grows with a batch that the file had fixed."""
        return self.batch is not None and isinstance(x, fx.Node) and any(is_free(x, i) for i in range(rank(x)))


def example_of(args: Any, index: int) -> Any:
    """The arguments of a call for one set of examples."""

    def pick(value: Any) -> Any:
        if isinstance(value, fx.Node):
            return value.meta[EXAMPLES][index]
        return value.examples[index] if isinstance(value, Size) else value

    return map_aggregate(_known(args), pick)


def example(x: Value) -> Any:
    """The first example of a value, a constant as it is."""
    return x.meta[EXAMPLES][0] if isinstance(x, fx.Node) else x


def rank(x: Value) -> int:
    """How many dimensions a value has."""
    return int(x.meta[EXAMPLES][0].dim()) if isinstance(x, fx.Node) else x.ndim


def dtype_of(x: Value) -> torch.dtype:
    """The type of its entries."""
    if isinstance(x, fx.Node):
        found: torch.dtype = x.meta[EXAMPLES][0].dtype
        return found
    return x.dtype if isinstance(x, Tensor) else torch.int64


def is_free(x: fx.Node, axis: int) -> bool:
    """Whether an axis has another length in each set of examples."""
    first, second = x.meta[EXAMPLES]
    return bool(first.shape[axis] != second.shape[axis])


def fixed_shape(x: Value, start: int = 0) -> list[int]:
    """The lengths from axis `start` on. Raises UnsupportedError where one is free."""
    if isinstance(x, Tensor):
        return list(x.shape[start:])
    assert isinstance(x, fx.Node)
    first, second = (list(e.shape[start:]) for e in x.meta[EXAMPLES])
    if first != second:
        raise UnsupportedError("it needs sizes that the file leaves free: export it with fixed sizes but the batch")
    return first


def _known(args: Any) -> Any:
    """The same arguments, arrays of sizes as the one size that they hold. Raises UnsupportedError for more."""

    def one(value: Any) -> Any:
        if not isinstance(value, np.ndarray):
            return value
        if value.size != 1:
            raise UnsupportedError("it computes with a shape as if it were data, and a size in it is free")
        return value.reshape(-1)[0]

    return map_aggregate(args, one)


def _free(args: Any, kwargs: Any) -> bool:
    """Whether any argument is known only when the network runs."""
    found: list[bool] = []

    def look(value: Any) -> Any:
        found.append(isinstance(value, (fx.Node, Size)) or (isinstance(value, np.ndarray) and value.dtype == object))
        return value

    map_aggregate((args, kwargs), look)
    return any(found)


def _key(value: Tensor) -> tuple[Any, ...]:
    """What makes two constants one: their entries where these are few, else that they are the same object."""
    if value.numel() > 16:
        return (id(value),)
    return (value.dtype, tuple(value.shape), value.contiguous().numpy().tobytes())


def _plain(result: Any) -> list[Value]:
    """The results of a call on constants."""
    return [r.detach() for r in (result if isinstance(result, (tuple, list)) else (result,))]
