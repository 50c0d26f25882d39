"""An exported graph, read once: nodes in order, constants as arrays, who reads what."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import numpy as np
import onnx
import onnx.inliner
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from isobit.core.errors import ArtifactError, IsobitError, UnsupportedError
from isobit.core.onnx_file import first_line, read_onnx

FOLDED = frozenset(
    {"Add", "BitShift", "BitwiseAnd", "Cast", "Gather", "Mul", "ReduceSum", "Reshape", "Slice", "Squeeze", "Unsqueeze"}
)
"""Ops that are evaluated at once where they read constants alone: what unpacks weights, and what is around shapes."""


@dataclass(frozen=True, eq=False, slots=True)
class Node:
    """One op of the file. `proto` is what the ONNX reference evaluator needs for ops without a rule of their own."""

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    proto: onnx.NodeProto = field(repr=False)

    def ints(self, name: str, default: Sequence[int]) -> list[int]:
        """A list attribute."""
        return [int(v) for v in self.attributes.get(name, default)]


@final
class Graph:
    """The main graph of an ONNX file, with local functions inlined and Constant nodes among the constants."""

    def __init__(self, model: onnx.ModelProto) -> None:
        if model.functions:
            model = onnx.inliner.inline_local_functions(model)
        graph = model.graph
        if not graph.node or not graph.output:
            raise ArtifactError("the file holds no graph: it is truncated, or not an ONNX file")
        self.opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
        self.constants = {t.name: _in_bytes(t) for t in graph.initializer}
        self.inputs = tuple(v.name for v in graph.input if v.name not in self.constants)
        self.outputs = tuple(v.name for v in graph.output)
        self.input_types = {
            v.name: onnx.helper.tensor_dtype_to_np_dtype(v.type.tensor_type.elem_type) for v in graph.input
        }
        self.nodes: list[Node] = []
        for proto in graph.node:
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in proto.attribute}
            if proto.op_type == "Constant":
                self.constants[proto.output[0]] = _constant(attributes)
                continue
            if any(a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for a in proto.attribute):
                raise UnsupportedError(f"{proto.name or proto.output[0]} ({proto.op_type}) holds a graph of its own")
            name = proto.name or proto.output[0]
            if proto.op_type in FOLDED and all(i in self.constants for i in proto.input if i):
                self._fold(proto)
                continue
            self.nodes.append(Node(name, proto.op_type, tuple(proto.input), tuple(proto.output), attributes, proto))
        self.producers = {out: node for node in self.nodes for out in node.outputs if out}
        self.readers: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.inputs):
                self.readers.setdefault(name, []).append(node)
        try:
            inferred = onnx.shape_inference.infer_shapes(model).graph
        except onnx.shape_inference.InferenceError as error:
            raise ArtifactError(f"not a valid ONNX file: {error}") from error
        values = (*inferred.value_info, *inferred.input, *inferred.output)
        self._ranks = {
            v.name: len(v.type.tensor_type.shape.dim) for v in values if v.type.tensor_type.HasField("shape")
        }

    def _fold(self, proto: onnx.NodeProto) -> None:
        """Evaluate a node that reads constants alone, as an engine does while it loads the file."""
        given = {name: self.constants[name] for name in proto.input if name}
        try:
            found = ReferenceEvaluator(proto, opsets={"": self.opset}).run(None, given)
        except Exception as error:  # numpy's and onnx's own, of any kind
            raise ArtifactError(f"{proto.name} ({proto.op_type}) cannot be evaluated: {first_line(error)}") from error
        self.constants |= dict(zip(proto.output, map(np.asarray, found), strict=False))

    def rank(self, tensor: str) -> int | None:
        """How many dimensions a tensor has, where the file says so."""
        if tensor in self.constants:
            return self.constants[tensor].ndim
        return self._ranks.get(tensor)

    def only_reader(self, tensor: str) -> Node | None:
        """The node that reads `tensor`, where it is the only one and the tensor is no output of the file."""
        readers = self.readers.get(tensor, [])
        return readers[0] if len(readers) == 1 and tensor not in self.outputs else None

    def use_counts(self) -> Counter[str]:
        """How many nodes read each tensor; outputs of the file count once more."""
        return Counter({name: len(nodes) for name, nodes in self.readers.items()}) + Counter(self.outputs)


def read_graph(source: Path | str | onnx.ModelProto) -> Graph:
    """Read a file, or take a model. Raises ArtifactError for what is truncated, hostile or no ONNX file."""
    return Graph(source if isinstance(source, onnx.ModelProto) else read_onnx(source))


@contextmanager
def described_by(node: Node) -> Iterator[None]:
    """What goes wrong inside is what the file says of `node`: it becomes an ArtifactError that names the op."""
    try:
        yield
    except IsobitError:
        raise
    except Exception as error:
        raise ArtifactError(
            f"{node.name} ({node.op}) cannot be computed as the file describes it: {first_line(error)}"
        ) from error


def _in_bytes(tensor: onnx.TensorProto) -> np.ndarray:
    """An initializer; integers of 4 bits, which numpy and torch have no kind for, as bytes."""
    array = numpy_helper.to_array(tensor)
    if tensor.data_type not in (onnx.TensorProto.INT4, onnx.TensorProto.UINT4):
        return array
    return array.astype(np.int8 if tensor.data_type == onnx.TensorProto.INT4 else np.uint8)


def _constant(attributes: Mapping[str, Any]) -> np.ndarray:
    for key, dtype in (("value_float", np.float32), ("value_floats", np.float32), ("value_int", np.int64),
                       ("value_ints", np.int64)):  # fmt: skip
        if key in attributes:
            return np.asarray(attributes[key], dtype=dtype)
    if "value" in attributes:
        return np.asarray(numpy_helper.to_array(attributes["value"]))
    raise UnsupportedError(f"a Constant with {', '.join(attributes)} is not supported")
