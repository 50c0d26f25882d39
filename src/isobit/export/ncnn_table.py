"""ncnn's int8 table beside a float network: one line of scales for each layer's weight and input.

`ncnn2int8 net.param net.bin net-int8.param net-int8.bin net.table` reads it, behind a conversion of net.onnx that keeps
the names of the layers. A line is a key and its factors, 127 / (largest magnitude) = 1 / scale: `conv1_param_0` with
one for each output channel, `conv1` with one for the input; first all weights, then all inputs, as ncnn2table writes
them. ncnn quantizes convolutions, depthwise convolutions and inner products, clips to -127..127 and adds the bias in
float.

Sources: `read_int8scale_table` and `quantize_convolution` in
https://github.com/Tencent/ncnn/blob/master/tools/quantize/ncnn2int8.cpp (the `_param_` keys, one factor for each group
of a depthwise convolution); https://github.com/Tencent/ncnn/wiki/quantized-int8-inference. Assumed: that the converter
(onnx2ncnn, pnnx) gives the layers the names of the ONNX nodes; ncnn2int8 is not in ncnn's package and was not run.
"""

import numpy as np

from isobit.core.errors import ArtifactError, UnsupportedError
from isobit.export.encodings import Encodings, ReadBack, check_symmetric_bytes, read_integers, symmetric_bytes
from isobit.export.float_network import FloatNetwork
from isobit.export.per_layer import group, layer_names, quantized_layers
from isobit.export.vendor_format import Held, Text, VendorFormat

WHAT = "ncnn"
KEY = "_param_0"


def ncnn() -> VendorFormat:
    """ncnn's net.table beside net.onnx in floats."""
    return VendorFormat(format="ncnn", what=WHAT, opset=13, suffix=".table", write=_table, read=_read)


def _table(network: FloatNetwork) -> Text:
    check_symmetric_bytes(network.encodings, lowest=-127, what=WHAT)
    weights, inputs, left = [], [], []
    for name, encoding in ((q.name, q) for q in quantized_layers(network)):
        layer = encoding.layer
        if layer.node.op_type not in ("Conv", "Gemm"):
            left.append(name)
            continue
        groups, channels = group(layer), network.program.graph.initializers[layer.weight].shape
        assert channels is not None
        outputs = int(channels[0])  # type: ignore[arg-type]
        if 1 < groups < outputs:
            raise UnsupportedError(
                f"{name}: ncnn has one scale for each group of a grouped convolution, and this one has one for each "
                f"output channel: keep the layer in float (keep_float={name!r})"
            )
        scales = np.broadcast_to(encoding.weight.scale, (outputs,))
        weights.append(" ".join([f"{name}{KEY}", *map(_factor, scales)]))
        inputs.append(f"{name} {_factor(encoding.x.scale)}")
    notes = [f"ncnn computes {', '.join(left)} in float: its int8 has no such layer"] if left else []
    return "\n".join([*weights, *inputs, ""]), notes


def _read(held: Held) -> ReadBack:
    """The encodings of layers' inputs and weights, and the integers that follow."""
    named = layer_names(held.graph)
    activations, weights = {}, {}
    for line in held.text.splitlines():
        key, *numbers = line.split()
        name = key.removesuffix(KEY)
        if name not in named or not numbers:
            raise ArtifactError(f"the table beside {held.path} has a line for {name!r}, and the network no such layer")
        scales = np.float32(1) / np.array([float(n) for n in numbers], np.float32)
        if key.endswith(KEY):
            weights[named[name].weight] = symmetric_bytes(scales, lowest=-127)
        else:
            activations[named[name].x] = symmetric_bytes(scales[0], lowest=-127)
    return read_integers(held.graph, Encodings(activations=activations, weights=weights))


def _factor(scale: np.ndarray) -> str:
    """1 / scale in the fewest digits that give the same float32."""
    return np.format_float_positional(np.float32(1) / np.float32(scale), unique=True, trim="0")
