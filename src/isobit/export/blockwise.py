"""Weights with a scale per group in ONNX's own types of 4 bits, which engines that read those keep in memory."""

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from isobit.export.linear_layers import QuantizedGemm, quantized_gemms
from isobit.graph.convert import Levels

BITS = 4


def write_blockwise(model: ir.Model, levels: Mapping[str, Levels]) -> set[str]:
    """Give blockwise weights of at most 4 bits the type INT4 or UINT4, and no zero points where all are 0.

    Returns the names of all blockwise weights: they have to stay constants. OpenVINO 2026.4 computes wrong products
    where other ops make them (measured).
    """
    found = [layer for layer in quantized_gemms(model.graph) if layer.block]
    for layer in found:
        if len(levels[layer.name].table) <= 1 << BITS:
            _narrow(layer)
        if not layer.zero_point.any() and layer.dequantize.inputs[2] is not None:
            zero_point = layer.dequantize.inputs[2]
            layer.dequantize.resize_inputs(2)
            if not zero_point.uses():
                del model.graph.initializers[str(zero_point.name)]
    return {layer.name for layer in found}


def _narrow(layer: QuantizedGemm) -> None:
    kind = (ir.DataType.INT4 if layer.q.dtype == np.int8 else ir.DataType.UINT4).numpy()
    for value, array in zip(
        (layer.dequantize.inputs[0], layer.dequantize.inputs[2]), (layer.q, layer.zero_point), strict=True
    ):
        assert value is not None
        value.const_value = ir.tensor(array.astype(kind), name=value.name)
        value.dtype = value.const_value.dtype
