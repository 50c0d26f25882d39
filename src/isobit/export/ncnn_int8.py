"""ncnn networks with int8 weights: the graph of the ONNX exporter as net.param and net.bin.

What ncnn2int8 would write, with isobit's own integers: convolutions, depthwise ones and inner products take signed
bytes without -128, quantized on the way in, and give floats; everything between them is float. Parameters:
https://github.com/Tencent/ncnn/wiki/operators.
"""

from pathlib import Path

import onnx

from isobit.core.ncnn_file import SUFFIX, Layer, write_ncnn
from isobit.export.engine_format import EngineFormat
from isobit.export.ncnn_layers import Network
from isobit.integer.model import Graph

BESIDE = (".bin", ".json")
"""The files that belong to net.param."""


def ncnn_files() -> EngineFormat:
    """ncnn's net.param, net.bin and net.json, which holds isobit's metadata."""
    return EngineFormat(format="ncnn-int8", suffix=SUFFIX, beside=BESIDE, write=write_layers)


def write_layers(path: Path, source: onnx.ModelProto, metadata: dict[str, str]) -> None:
    """Write a QDQ graph as ncnn's three files; raises UnsupportedError, with the op's name."""
    write_ncnn(path, translate(source), metadata)


def translate(source: onnx.ModelProto) -> list[Layer]:
    """A QDQ graph as ncnn's layers. Raises UnsupportedError."""
    graph = Graph(source)
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in source.graph.input}
    network = Network(graph)
    for name in graph.inputs:
        network.input(name, shapes[name])
    for node in graph.nodes:
        network.add(node)
    return network.finish()
