"""Linear layers as `com.microsoft.MatMulNBits`: weights of 2, 4 or 8 bits, packed, as ONNX Runtime multiplies them."""

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import torch

from isobit.core.packing import pack
from isobit.export.linear_layers import QuantizedGemm, constant, forget_unused, quantized_gemms, replace
from isobit.graph.convert import Levels
from isobit.targets import MatMulNBits

DOMAIN = "com.microsoft"


def write_matmul_nbits(model: ir.Model, levels: Mapping[str, Levels], form: MatMulNBits) -> None:
    """Replace each Gemm with a blockwise weight. `levels` are those of its integers, by the initializer's name."""
    graph = model.graph
    layers = [layer for layer in quantized_gemms(graph) if layer.block]
    for layer in layers:
        replace(graph, layer, [_matmul(graph, layer, levels[layer.name].table, form)])
    forget_unused(graph, (layer.dequantize for layer in layers))
    if layers:
        model.opset_imports[DOMAIN] = 1


def pack_rows(q: np.ndarray, bits: int) -> np.ndarray:
    """Unsigned integers of each row as bytes, the first in the lowest bits; a row's spare bits are zero.

    Shapes: (…, n) → (…, ceil(n · bits / 8)).
    """
    spare = -q.shape[-1] % (8 // bits)
    rows = np.pad(q, [(0, 0)] * (q.ndim - 1) + [(0, spare)])
    return pack(torch.from_numpy(rows), bits=bits, signed=False).numpy().reshape(*q.shape[:-1], -1)


def _matmul(graph: ir.Graph, layer: QuantizedGemm, levels: tuple[int, ...], form: MatMulNBits) -> ir.Node:
    outputs, inputs = layer.q.shape
    wanted = max((len(levels) - 1).bit_length(), 1)
    bits = next(width for width in form.widths if width >= wanted)
    middle = 1 << (bits - 1)
    shift = middle if layer.q.dtype == np.int8 else 0  # the op's integers are unsigned
    q = layer.q.astype(np.int32).reshape(outputs, -1, layer.block) + shift
    zero_point = layer.zero_point.astype(np.int32) + shift
    stem = layer.name.removesuffix(".q")
    values = [
        layer.x,
        constant(graph, f"{stem}.packed", pack_rows(q, bits)),
        constant(graph, f"{stem}.scales", layer.scale),
        None
        if bool((zero_point == middle).all())  # what the op takes where none is given
        else constant(graph, f"{stem}.zero_points", pack_rows(zero_point, bits)),
        None,
        layer.bias,
    ]
    while values[-1] is None:
        values.pop()
    settings = {"K": inputs, "N": outputs, "bits": bits, "block_size": layer.block}
    return ir.node("MatMulNBits", values, domain=DOMAIN, attributes={**settings, "accuracy_level": form.accuracy_level})
