"""LiteRT files as QDQ graphs: what the integer reference evaluates, and what everything that reads ONNX understands.

An int8 tensor becomes the result of a QuantizeLinear of its name. Spatial ops stand between two Transposes, since
images lie with their channels last. A DEQUANTIZE of the file is followed by an Identity: no op behind it computes with
integers.
"""

import json
from pathlib import Path
from typing import Any, final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from isobit.core.errors import ArtifactError, UnsupportedError
from isobit.core.litert_check import check_litert, kind_of
from isobit.core.litert_file import dtypes, metadata_of, read_litert, unique_names
from isobit.integer.litert_ops import READERS

OPSET = 21


def qdq_of_litert(source: Path | str | Any) -> onnx.ModelProto:
    """The graph of a LiteRT file, or of a `ModelT` of its schema, with QuantizeLinear and DequantizeLinear.

    Raises ArtifactError for a file that is damaged, UnsupportedError, with its name, for an op that has no rule.
    """
    model = read_litert(source) if isinstance(source, (str, Path)) else source
    try:
        check_litert(model)
        return Reading(model).model()
    except (IndexError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ArtifactError(f"the LiteRT file is damaged: {error}") from error


@final
class Reading:
    """A subgraph while it is read: nodes and initializers so far, and the views of its integer tensors."""

    def __init__(self, model: Any) -> None:
        self.file, self.graph = model, model.subgraphs[0]
        self.names = unique_names(self.graph)
        self._types = dtypes()
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._views: dict[int, str] = {}
        self.floats: dict[int, np.ndarray] = {}

    def model(self) -> onnx.ModelProto:
        """The whole graph."""
        for operator in self.graph.operators:
            READERS[kind_of(self.file, operator)](self, operator)
        inputs, outputs = ([self._value(i) for i in ends] for ends in (self.graph.inputs, self.graph.outputs))
        graph = helper.make_graph(self.nodes, "main", inputs, outputs, self.initializers)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
        if (data := metadata_of(self.file)) is not None:
            helper.set_model_props(model, _metadata(data))
        return model

    def dtype(self, index: int) -> np.dtype[Any]:
        """The type of a tensor. Raises UnsupportedError."""
        kind = self.graph.tensors[index].type
        if kind not in self._types:
            raise UnsupportedError(f"{self.names[index]}: a tensor of LiteRT's type {kind} has no rule here")
        return self._types[kind]

    def is_integer(self, index: int) -> bool:
        """Whether a tensor holds quantized bytes."""
        return self.dtype(index) in (np.int8, np.uint8, np.int16) and self.quantization(index) is not None

    def data(self, index: int) -> np.ndarray | None:
        """The values of a constant, or of what a DEQUANTIZE makes of one; None for what is computed."""
        if index in self.floats:
            return self.floats[index]
        tensor = self.graph.tensors[index]
        buffer = self.file.buffers[tensor.buffer].data if tensor.buffer else None
        if buffer is None or len(buffer) == 0:
            return None
        shape = tuple(int(size) for size in (tensor.shape if tensor.shape is not None else ()))
        values = np.frombuffer(np.asarray(buffer, np.uint8).tobytes(), self.dtype(index))
        if min(shape, default=0) < 0 or values.size != int(np.prod(shape, dtype=object)):
            raise ArtifactError(f"{self.names[index]}: {values.size} values do not fill the shape {shape}")
        return values.reshape(shape)

    def fixed(self, index: int) -> np.ndarray:
        """The values of a constant that an op needs. Raises UnsupportedError where they are computed."""
        found = self.data(index)
        if found is None:
            raise UnsupportedError(f"{self.names[index]} has to be a constant")
        return found

    def rank(self, index: int) -> int:
        """How many dimensions a tensor has."""
        shape = self.graph.tensors[index].shape
        return 0 if shape is None else len(shape)

    def operand(self, index: int) -> str:
        """The tensor that an op reads, seen through DequantizeLinear where it holds integers."""
        data = self.data(index)
        if data is not None:
            return self.constant(index, data)
        return self.view(index) if self.is_integer(index) else self.names[index]

    def view(self, index: int) -> str:
        """The dequantized view of computed integers; one for all readers."""
        if index not in self._views:
            view = f"{self.names[index]}/view"
            self.add("DequantizeLinear", [self.names[index], *self._scales(index)], view)
            self._views[index] = view
        return self._views[index]

    def constant(self, index: int, data: np.ndarray, axis: int | None = None, word: str = "") -> str:
        """A constant as an initializer, dequantized where it has scales; `data` may be turned, with `axis` its axis."""
        name = f"{self.names[index]}{word}"
        if name not in self._views.values():
            self._views[-1 - len(self._views)] = name
            if data.dtype == np.int64 and self.quantization(index) is not None:
                data = self._narrowed(index, data)
            quantized = self.quantization(index) is not None and data.dtype.kind in "iu"
            self.initializer(f"{name}/integers" if quantized else name, data)
            if quantized:
                along = self.graph.tensors[index].quantization.quantizedDimension if axis is None else axis
                scales = self._scales(index, data.dtype)
                self.add("DequantizeLinear", [f"{name}/integers", *scales], name, axis=int(along))
        return name

    def _narrowed(self, index: int, data: np.ndarray) -> np.ndarray:
        """A bias of 64 bits, as those beside activations of 16 bits are, in 32. Raises UnsupportedError."""
        if np.abs(data).max(initial=0) >= 1 << 31:
            raise UnsupportedError(f"{self.names[index]}: a bias of more than 32 bits has no rule here")
        return data.astype(np.int32)

    def initializer(self, name: str, data: np.ndarray) -> str:
        """A constant of the graph, once for each name."""
        if all(t.name != name for t in self.initializers):
            self.initializers.append(numpy_helper.from_array(np.asarray(data, order="C"), name))
        return name

    def add(self, op: str, inputs: list[str], output: str, *, name: str = "", **attributes: Any) -> str:
        """A node; its name is that of its result unless one is given."""
        self.nodes.append(helper.make_node(op, inputs, [output], name=name or output, **attributes))
        return output

    def store(self, value: str, index: int) -> None:
        """Let `value` be the tensor `index` of the file: rounded where that holds integers."""
        name = self.names[index]
        if self.is_integer(index):
            self.add("QuantizeLinear", [value, *self._scales(index)], name, name=f"{name}/quantize")
        elif value != name:
            producer = next(n for n in reversed(self.nodes) if value in n.output)
            producer.output[0] = name

    def _scales(self, index: int, kind: Any = None) -> list[str]:
        found = self.quantization(index)
        if found is None:
            raise ArtifactError(f"{self.names[index]}: the integers have no scale")
        scale, zero_point = found
        kind = self.dtype(index) if kind is None else kind
        name = self.names[index]
        scales = scale if scale.size > 1 else scale.reshape(())
        zeros = (zero_point if scale.size > 1 else zero_point.reshape(())).astype(kind)
        return [self.initializer(f"{name}/scale", scales), self.initializer(f"{name}/zero_point", zeros)]

    def quantization(self, index: int) -> tuple[np.ndarray, np.ndarray] | None:
        """The scales and zero points of a tensor."""
        found = self.graph.tensors[index].quantization
        if found is None or found.scale is None or len(found.scale) == 0:
            return None
        scale = np.asarray(found.scale, np.float32)
        zero = np.zeros(scale.shape, np.int64) if found.zeroPoint is None else np.asarray(found.zeroPoint, np.int64)
        if zero.size not in (1, scale.size) or not np.isfinite(scale).all() or not (scale > 0).all():
            raise ArtifactError(f"{self.names[index]}: scales have to be positive, with one zero point for each")
        return scale, np.ascontiguousarray(np.broadcast_to(zero, scale.shape))

    def _value(self, index: int) -> onnx.ValueInfoProto:
        tensor = self.graph.tensors[index]
        sizes = tensor.shapeSignature if tensor.shapeSignature is not None else tensor.shape
        dims = [] if sizes is None else ["batch" if int(size) < 0 else int(size) for size in sizes]
        kind = helper.np_dtype_to_tensor_dtype(self.dtype(index)) if self.dtype(index) else TensorProto.FLOAT
        return helper.make_tensor_value_info(self.names[index], kind, dims)


def _metadata(data: bytes) -> dict[str, str]:
    """isobit's own keys, which the file holds as JSON."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ArtifactError("isobit's metadata in the LiteRT file are damaged: export it again") from error
    if not isinstance(found, dict) or not all(isinstance(v, str) for v in found.values()):
        raise ArtifactError("isobit's metadata in the LiteRT file are damaged: export it again")
    return found
