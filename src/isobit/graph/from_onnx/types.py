"""Types of numbers: a file's as torch's. Floats of any width become float32, in which isobit calibrates."""

import torch
from onnx import TensorProto

from isobit.core.errors import UnsupportedError

_TYPES: dict[int, torch.dtype] = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.FLOAT16: torch.float32,
    TensorProto.BFLOAT16: torch.float32,
    TensorProto.DOUBLE: torch.float32,
    TensorProto.INT8: torch.int8,
    TensorProto.INT16: torch.int16,
    TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64,
    TensorProto.UINT8: torch.uint8,
    TensorProto.BOOL: torch.bool,
}

OTHER_FLOATS: dict[int, str] = {
    TensorProto.FLOAT16: "float16",
    TensorProto.BFLOAT16: "bfloat16",
    TensorProto.DOUBLE: "float64",
}
"""Types that are changed to float32."""


def dtype_of_onnx(number: int) -> torch.dtype:
    """The type of torch for one of ONNX's. Raises UnsupportedError."""
    if number not in _TYPES:
        name = TensorProto.DataType.Name(number) if number in TensorProto.DataType.values() else number
        raise UnsupportedError(f"numbers of the type {name} are not supported")
    return _TYPES[number]
