"""ncnn networks with int8 weights: the graph of the ONNX exporter as net.param and net.bin.

What ncnn2int8 would write, with isobit's own integers: convolutions, depthwise ones and inner products take signed
bytes without -128, quantized on the way in, and give floats; everything between them is float. Parameters:
https://github.com/Tencent/ncnn/wiki/operators.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import final

import onnx
from torch import Tensor, fx

from isobit.core.artifact import Artifact
from isobit.core.files import sha256_of_file
from isobit.core.ncnn_file import SUFFIX, Layer, write_ncnn
from isobit.export.beside import check_places
from isobit.export.ncnn_layers import Network
from isobit.export.onnx_qdq import OnnxQdq
from isobit.integer.model import Graph

BESIDE = (".bin", ".json")
"""The files that belong to net.param."""


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class NcnnInt8:
    """Settings of the exporter for ncnn's own files."""

    format: str = "ncnn-int8"

    def export(
        self,
        model: fx.GraphModule,
        path: str | Path,
        *,
        example: tuple[Tensor, ...],
        metadata: dict[str, str] | None = None,
    ) -> Artifact:
        """Write net.param, net.bin and net.json, which holds isobit's metadata.

        Raises UnsupportedError, with the op's name, for what ncnn has no form for, OutputError, SettingError.
        """
        path = Path(path)
        check_places(path, BESIDE, instead=SUFFIX)
        with tempfile.TemporaryDirectory() as folder:
            plain = OnnxQdq(packed=False)
            artifact = plain.export(model, Path(folder) / "model.onnx", example=example, metadata=metadata)
            source = onnx.load(artifact.path)
        write_ncnn(path, translate(source), artifact.metadata)
        return Artifact(
            path=path,
            format=self.format,
            target=artifact.target,
            sha256=sha256_of_file(path),
            integers_sha256=artifact.integers_sha256,
            metadata=artifact.metadata,
            beside=tuple(path.with_suffix(suffix) for suffix in BESIDE),
        )


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
