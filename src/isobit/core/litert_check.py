"""What has to hold of a LiteRT file before an engine sees it: LiteRT itself trusts much of it and crashes."""

from typing import Any, NamedTuple

import numpy as np

from isobit.core.errors import ArtifactError
from isobit.core.litert_file import dtypes, op_names, schema, tensor_name

LARGEST = 1 << 31
"""Elements of a tensor, and values of an index."""


class Op(NamedTuple):
    """An op that isobit knows: the class of its options, how many inputs it has, at least and at most, and results."""

    options: str | None
    least: int
    most: int
    results: int = 1


OPS = {
    "ADD": Op("AddOptions", 2, 2),
    "ARG_MAX": Op("ArgMaxOptions", 2, 2),
    "AVERAGE_POOL_2D": Op("Pool2DOptions", 1, 1),
    "BATCH_MATMUL": Op("BatchMatMulOptions", 2, 2),
    "CAST": Op("CastOptions", 1, 1),
    "CONCATENATION": Op("ConcatenationOptions", 1, 1000),
    "CONV_2D": Op("Conv2DOptions", 3, 3),
    "DEPTHWISE_CONV_2D": Op("DepthwiseConv2DOptions", 3, 3),
    "DEPTH_TO_SPACE": Op("DepthToSpaceOptions", 1, 1),
    "DEQUANTIZE": Op("DequantizeOptions", 1, 1),
    "DIV": Op("DivOptions", 2, 2),
    "ELU": Op(None, 1, 1),
    "EXPAND_DIMS": Op("ExpandDimsOptions", 2, 2),
    "FULLY_CONNECTED": Op("FullyConnectedOptions", 2, 3),
    "GATHER": Op("GatherOptions", 2, 2),
    "GELU": Op("GeluOptions", 1, 1),
    "HARD_SWISH": Op("HardSwishOptions", 1, 1),
    "LEAKY_RELU": Op("LeakyReluOptions", 1, 1),
    "LOGISTIC": Op(None, 1, 1),
    "MAXIMUM": Op("MaximumMinimumOptions", 2, 2),
    "MAX_POOL_2D": Op("Pool2DOptions", 1, 1),
    "MEAN": Op("ReducerOptions", 2, 2),
    "MINIMUM": Op("MaximumMinimumOptions", 2, 2),
    "MUL": Op("MulOptions", 2, 2),
    "NOT_EQUAL": Op("NotEqualOptions", 2, 2),
    "PACK": Op("PackOptions", 1, 1000),
    "PAD": Op("PadOptions", 2, 2),
    "PADV2": Op("PadV2Options", 3, 3),
    "QUANTIZE": Op("QuantizeOptions", 1, 1),
    "REDUCE_MAX": Op("ReducerOptions", 2, 2),
    "REDUCE_PROD": Op("ReducerOptions", 2, 2),
    "RELU": Op(None, 1, 1),
    "RELU6": Op(None, 1, 1),
    "RESHAPE": Op("ReshapeOptions", 1, 2),
    "RESIZE_BILINEAR": Op("ResizeBilinearOptions", 2, 2),
    "RESIZE_NEAREST_NEIGHBOR": Op("ResizeNearestNeighborOptions", 2, 2),
    "RSQRT": Op(None, 1, 1),
    "SELECT_V2": Op("SelectV2Options", 3, 3),
    "SHAPE": Op("ShapeOptions", 1, 1),
    "SLICE": Op("SliceOptions", 3, 3),
    "SOFTMAX": Op("SoftmaxOptions", 1, 1),
    "SPACE_TO_DEPTH": Op("SpaceToDepthOptions", 1, 1),
    "SPLIT": Op("SplitOptions", 2, 2, results=1000),
    "SQRT": Op(None, 1, 1),
    "SQUEEZE": Op("SqueezeOptions", 1, 1),
    "SQUARED_DIFFERENCE": Op("SquaredDifferenceOptions", 2, 2),
    "STRIDED_SLICE": Op("StridedSliceOptions", 4, 4),
    "SUB": Op("SubOptions", 2, 2),
    "SUM": Op("ReducerOptions", 2, 2),
    "TANH": Op(None, 1, 1),
    "TRANSPOSE": Op("TransposeOptions", 2, 2),
}
"""The ops that isobit writes and reads, by their names in the schema."""

MOVES = frozenset(
    {"CAST", "DEQUANTIZE", "EXPAND_DIMS", "GATHER", "PACK", "QUANTIZE", "RESHAPE", "SHAPE", "SLICE", "SPLIT", "SQUEEZE",
     "STRIDED_SLICE", "TRANSPOSE"}
)  # fmt: skip
"""Ops that compute nothing: in float they are no island."""

_OPTIONAL = frozenset({"CAST", "RESHAPE"})
"""Ops whose options, other than those without a field, a file may leave out."""


def check_litert(model: Any) -> None:
    """Raise ArtifactError, with the name of the tensor or op, for a `ModelT` that no engine should load."""
    graph = model.subgraphs[0]
    if len(model.subgraphs) > 1:
        raise ArtifactError("the LiteRT file holds several graphs: control flow has no rule here")
    kinds = dtypes()
    for tensor in graph.tensors or ():
        _check_tensor(model, tensor, kinds)
    count = len(graph.tensors or ())
    written: set[int] = set()
    for place, operator in enumerate(graph.operators):
        kind = kind_of(model, operator)
        name = f"op {place} ({kind})"
        _check_op(operator, kind, name, count)
        written.update(_list(operator.outputs))
    for index in (*_list(graph.inputs), *_list(graph.outputs)):
        if not 0 <= index < count:
            raise ArtifactError(f"the LiteRT file's graph refers to a tensor {index} that does not exist")
    if not _list(graph.outputs) or not _list(graph.inputs):
        raise ArtifactError("the LiteRT file's graph has no input or no output")
    _check_order(graph, model)


def kind_of(model: Any, operator: Any) -> str:
    """The name of an op in the schema. Raises ArtifactError for a number out of place."""
    if not 0 <= operator.opcodeIndex < len(model.operatorCodes):
        raise ArtifactError("the LiteRT file is damaged: an op has no code")
    code = model.operatorCodes[operator.opcodeIndex]
    number = max(code.builtinCode, code.deprecatedBuiltinCode)
    return op_names().get(number, str(number))


def _check_tensor(model: Any, tensor: Any, kinds: dict[int, np.dtype[Any]]) -> None:
    name = tensor_name(tensor)
    if tensor.type not in kinds:
        raise ArtifactError(f"{name}: a tensor of LiteRT's type {tensor.type} has no rule here")
    if tensor.sparsity is not None or tensor.isVariable:
        raise ArtifactError(f"{name}: sparse and variable tensors have no rule here")
    shape = _list(tensor.shape)
    size = int(np.prod(shape, dtype=object)) if shape else 1
    if min(shape, default=0) < 0 or size > LARGEST or max(shape, default=0) > LARGEST or len(shape) > 6:
        raise ArtifactError(f"{name}: the shape {tuple(shape)} is not possible")
    signature = _list(tensor.shapeSignature)
    if signature and (len(signature) != len(shape) or min(signature) < -1):
        raise ArtifactError(f"{name}: the shapes {tuple(shape)} and {tuple(signature)} do not fit each other")
    if not 0 <= tensor.buffer < len(model.buffers):
        raise ArtifactError(f"{name}: its data lies in a buffer that does not exist")
    buffer = model.buffers[tensor.buffer]
    if buffer.offset or buffer.size:
        raise ArtifactError(f"{name}: data outside the flatbuffer has no rule here")
    data = 0 if buffer.data is None else len(buffer.data)
    if data and data != size * kinds[tensor.type].itemsize:
        raise ArtifactError(f"{name}: {data} bytes do not fill the shape {tuple(shape)}")
    _check_quantization(name, tensor.quantization, shape, needed=kinds[tensor.type] in (np.int8, np.uint8, np.int16))


def _check_quantization(name: str, found: Any, shape: list[int], *, needed: bool) -> None:
    if found is None or found.scale is None or len(found.scale) == 0:
        if needed:
            raise ArtifactError(f"{name}: bytes without a scale stand for no number")
        return
    scale, zeros = np.asarray(found.scale), np.asarray(_list(found.zeroPoint), dtype=object)
    if not np.isfinite(scale).all() or not (scale > 0).all():
        raise ArtifactError(f"{name}: a scale has to be a positive number, got {scale.min()}")
    if len(zeros) != len(scale) or any(abs(z) > 1 << 16 for z in zeros):
        raise ArtifactError(f"{name}: {len(scale)} scales and {len(zeros)} zero points do not fit each other")
    axis = found.quantizedDimension
    if len(scale) > 1 and not (0 <= axis < len(shape) and shape[axis] == len(scale)):
        raise ArtifactError(f"{name}: {len(scale)} scales do not fit the shape {tuple(shape)} along dimension {axis}")


def _check_op(operator: Any, kind: str, name: str, count: int) -> None:
    if kind not in OPS:
        raise ArtifactError(f"{name}: the LiteRT op {kind} has no rule here")
    known = OPS[kind]
    inputs, outputs = _list(operator.inputs), _list(operator.outputs)
    if not known.least <= len(inputs) <= known.most or not 1 <= len(outputs) <= known.results:
        raise ArtifactError(f"{name}: {len(inputs)} inputs and {len(outputs)} outputs are not possible")
    optional = {2} if kind == "FULLY_CONNECTED" else set()
    for place, index in enumerate(inputs):
        if not (0 <= index < count or (index == -1 and place in optional)):
            raise ArtifactError(f"{name} reads a tensor {index} that does not exist")
    if lost := [index for index in outputs if not 0 <= index < count]:
        raise ArtifactError(f"{name} writes a tensor {lost[0]} that does not exist")
    absent = operator.builtinOptionsType == 0 and operator.builtinOptions is None
    if known.options is not None and not (absent and _may_lack_options(kind, known.options)):
        expected = getattr(schema().BuiltinOptions, known.options)
        if operator.builtinOptionsType != expected or operator.builtinOptions is None:
            raise ArtifactError(f"{name} has the options of another op")
    elif known.options is None and operator.builtinOptionsType:
        raise ArtifactError(f"{name} has the options of another op")
    for key, value in vars(operator.builtinOptions or object()).items() if operator.builtinOptions else ():
        if key.startswith(("stride", "filter", "dilation", "depth")) and not 1 <= int(value) <= 1 << 16:
            raise ArtifactError(f"{name}: {key} is {value}")


def _may_lack_options(kind: str, options: str) -> bool:
    """Whether TensorFlow's converter may leave the options out: there is nothing in them, or tensors say it."""
    return kind in _OPTIONAL or not vars(getattr(schema(), f"{options}T")())


def _check_order(graph: Any, model: Any) -> None:
    """Every tensor that is read has data, is an input, or was written before; and is written once."""
    known = set(_list(graph.inputs))
    for place, operator in enumerate(graph.operators):
        for index in _list(operator.inputs):
            tensor = None if index < 0 else graph.tensors[index]
            if tensor is not None and index not in known and not _holds_data(model, tensor):
                raise ArtifactError(f"op {place} reads {tensor_name(tensor)} before it is written")
        for index in _list(operator.outputs):
            if index in known or _holds_data(model, graph.tensors[index]):
                raise ArtifactError(f"op {place} writes {tensor_name(graph.tensors[index])}, which is known already")
            known.add(index)
    for index in _list(graph.outputs):
        if index not in known:
            raise ArtifactError(f"the output {tensor_name(graph.tensors[index])} is never written")


def _holds_data(model: Any, tensor: Any) -> bool:
    data = model.buffers[tensor.buffer].data
    return data is not None and len(data) > 0


def _list(values: Any) -> list[int]:
    return [] if values is None else [int(v) for v in values]
