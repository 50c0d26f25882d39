"""Tensors, buffers and ops of a LiteRT file while it is written."""

from collections.abc import Sequence
from typing import Any, final

import numpy as np

from isobit.core.litert_check import OPS
from isobit.core.litert_file import METADATA, dtypes, schema

Shape = tuple[int | None, ...]
"""Sizes of a tensor; None is the batch, which the user may change."""


@final
class Builder:
    """One subgraph under construction. Indices of tensors are what its methods take and return."""

    def __init__(self) -> None:
        self.schema = schema()
        self.model = self.schema.ModelT()
        self.graph = self.schema.SubGraphT()
        self.graph.tensors, self.graph.operators, self.graph.name = [], [], "main"
        self.model.version, self.model.description = 3, "isobit"
        self.model.subgraphs, self.model.operatorCodes = [self.graph], []
        self.model.buffers = [self.schema.BufferT()]  # the first is empty: that of tensors without data
        self._kinds = {kind: number for number, kind in dtypes().items()}
        self._codes: dict[tuple[int, int], int] = {}
        self._constants: dict[tuple[bytes, str, tuple[int, ...], bytes], int] = {}

    def tensor(
        self,
        name: str,
        shape: Shape,
        dtype: Any,
        *,
        grid: tuple[np.ndarray, np.ndarray] | None = None,
        axis: int = 0,
        data: np.ndarray | None = None,
    ) -> int:
        """A tensor; `grid` is its scale and zero point, one for all or one for each index along `axis`."""
        tensor = self.schema.TensorT()
        tensor.name, tensor.type, tensor.buffer = name, self._kinds[np.dtype(dtype)], 0
        tensor.shape = [1 if size is None else size for size in shape]
        if None in shape:
            tensor.shapeSignature = [-1 if size is None else size for size in shape]
        if data is not None:
            tensor.buffer = self._buffer(np.ascontiguousarray(data).tobytes())
        if grid is not None:
            tensor.quantization = self._quantization(*grid, axis)
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def constant(self, name: str, data: np.ndarray, scale: np.ndarray | None = None, axis: int = 0) -> int:
        """A tensor with data; equal ones are stored once."""
        key = (data.tobytes(), data.dtype.name, data.shape, b"" if scale is None else np.asarray(scale).tobytes())
        if key not in self._constants:
            grid = None if scale is None else (np.asarray(scale), np.zeros(np.size(scale), np.int64))
            self._constants[key] = self.tensor(name, data.shape, data.dtype, grid=grid, axis=axis, data=data)
        return self._constants[key]

    def op(self, kind: str, inputs: Sequence[int], outputs: Sequence[int], *, version: int = 1, **options: Any) -> None:
        """An op by its name in the schema; `options` are the fields of its options, in the schema's spelling."""
        operator = self.schema.OperatorT()
        number = getattr(self.schema.BuiltinOperator, kind)
        operator.opcodeIndex = self._code(number, version)
        operator.inputs, operator.outputs = list(inputs), list(outputs)
        if (name := OPS[kind].options) is not None:
            operator.builtinOptionsType = getattr(self.schema.BuiltinOptions, name)
            operator.builtinOptions = getattr(self.schema, f"{name}T")()
            for key, value in options.items():
                assert hasattr(operator.builtinOptions, key), (kind, key)
                setattr(operator.builtinOptions, key, value)
        self.graph.operators.append(operator)

    def finish(self, inputs: Sequence[int], outputs: Sequence[int], metadata: bytes) -> Any:
        """The whole model."""
        self.graph.inputs, self.graph.outputs = list(inputs), list(outputs)
        entry = self.schema.MetadataT()
        entry.name, entry.buffer = METADATA, self._buffer(metadata)
        self.model.metadata = [entry]
        return self.model

    def _buffer(self, data: bytes) -> int:
        buffer = self.schema.BufferT()
        buffer.data = np.frombuffer(data, np.uint8)
        self.model.buffers.append(buffer)
        return len(self.model.buffers) - 1

    def _quantization(self, scale: np.ndarray, zero_point: np.ndarray, axis: int) -> Any:
        found = self.schema.QuantizationParametersT()
        found.scale = np.atleast_1d(np.asarray(scale, np.float32))
        zeros = np.atleast_1d(zero_point).astype(np.int64)
        found.zeroPoint = np.ascontiguousarray(np.broadcast_to(zeros, found.scale.shape))
        found.quantizedDimension = axis
        return found

    def _code(self, number: int, version: int) -> int:
        if (number, version) not in self._codes:
            code = self.schema.OperatorCodeT()
            code.builtinCode, code.version = number, version
            code.deprecatedBuiltinCode = min(number, 127)
            self._codes[number, version] = len(self.model.operatorCodes)
            self.model.operatorCodes.append(code)
        return self._codes[number, version]
