"""A part of a network as a LiteRT file that takes and gives what its neighbours hand it: integers, channels last."""

from typing import Any

import numpy as np
import onnx

from isobit.analysis.onnx_layers import FLOAT_SIDE
from isobit.core.litert_check import kind_of
from isobit.core.litert_file import dtypes, serialized, tensor_name
from isobit.export.litert import translate

TO_CHANNELS_LAST, TO_CHANNELS_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)
"""Orders of dimensions in which a convolution's tensor enters and leaves."""


def litert_part(model: onnx.ModelProto) -> tuple[bytes, list[tuple[tuple[int, ...], np.dtype[Any]]]]:
    """The file of a part, and the shape and type of each of its inputs.

    A part that was cut with its quantizers is translated; then what stands at its borders is taken away. At an input or
    output of integers that is a quantizer and, since PyTorch has channels first, a transposition; at one of floats the
    transposition. Raises UnsupportedError for what LiteRT has no form for.
    """
    translated = translate(model, {})
    graph = translated.subgraphs[0]
    operators = list(graph.operators)
    inputs = [_inward(translated, operators, int(i)) for i in graph.inputs]
    outputs = [_outward(translated, operators, int(o)) for o in graph.outputs]
    graph.inputs, graph.outputs = inputs, outputs
    graph.operators = _needed(graph, operators)
    translated.signatureDefs = None
    kinds = dtypes()
    taken = [(tuple(int(n) for n in graph.tensors[i].shape), kinds[graph.tensors[i].type]) for i in inputs]
    return serialized(translated), taken


def _inward(model: Any, operators: list[Any], tensor: int) -> int:
    """The tensor behind the ops that do nothing but bring an input into the form of the network's inside."""
    for kind in ("TRANSPOSE", "QUANTIZE", "TRANSPOSE") if _is_bordered(model, tensor) else ("TRANSPOSE",):
        readers = [op for op in operators if tensor in list(op.inputs)]
        if len(readers) == 1 and len(operators) > 1 and _leads(model, readers[0], kind, TO_CHANNELS_LAST):
            operators.remove(readers[0])
            tensor = int(readers[0].outputs[0])
    return tensor


def _outward(model: Any, operators: list[Any], tensor: int) -> int:
    """The tensor before the ops that do nothing but bring an output into the form of a file's output."""
    for kind in ("TRANSPOSE", "DEQUANTIZE", "TRANSPOSE") if _is_bordered(model, tensor) else ("TRANSPOSE",):
        writers = [op for op in operators if tensor in list(op.outputs)]
        if len(writers) == 1 and len(operators) > 1 and _leads(model, writers[0], kind, TO_CHANNELS_FIRST):
            operators.remove(writers[0])
            tensor = int(writers[0].inputs[0])
    return tensor


def _leads(model: Any, op: Any, kind: str, order: tuple[int, ...]) -> bool:
    """Whether an op is of this kind, and a transposition one of this order."""
    if kind_of(model, op) != kind:
        return False
    if kind != "TRANSPOSE":
        return True
    buffer = model.buffers[model.subgraphs[0].tensors[int(op.inputs[1])].buffer]
    return tuple(np.asarray(buffer.data, np.uint8).view(np.int32)) == order


def _is_bordered(model: Any, tensor: int) -> bool:
    return FLOAT_SIDE in tensor_name(model.subgraphs[0].tensors[tensor])


def _needed(graph: Any, operators: list[Any]) -> list[Any]:
    """The ops that an output depends on."""
    wanted = {int(o) for o in graph.outputs}
    kept = []
    for op in reversed(operators):
        if wanted & {int(o) for o in op.outputs}:
            wanted.update(int(i) for i in op.inputs)
            kept.append(op)
    return kept[::-1]
