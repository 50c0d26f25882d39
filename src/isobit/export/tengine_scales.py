"""Tengine's scale file beside a float network: `name scale zero_point`, one activation a line.

Tengine's quant tool takes it with `-f net.scale` beside the model that its convert tool makes of net.onnx. That tool
joins a convolution and the ReLU behind it under the convolution's name, so that the output of the convolution is listed
too, with the scale of the ReLU's. Weights are rounded by the quant tool, 127 for the largest magnitude of each output
channel; a note counts the channels where that gives other integers.

Sources: the `for_tengine.scale` of https://github.com/ModelTC/MQBench/blob/main/mqbench/deploy/deploy_tengine.py, and
https://github.com/OAID/Tengine/blob/tengine-lite/doc/docs_en/user_guides/quant_tool_int8.md. The tool was not run.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import final

from torch import Tensor, fx

from isobit.core.artifact import Artifact
from isobit.core.errors import ArtifactError
from isobit.export.beside import export_beside, read_beside
from isobit.export.encodings import ReadBack, check_symmetric_bytes, symmetric_bytes
from isobit.export.float_network import FloatNetwork, whole_tensors
from isobit.export.own_rounding import rounded_otherwise

SUFFIX, WHAT = ".scale", "Tengine"


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class TengineScales:
    """Settings of the exporter for Tengine's scale files."""

    format: str = "tengine"
    opset: int = 11

    def export(
        self,
        model: fx.GraphModule,
        path: str | Path,
        *,
        example: tuple[Tensor, ...],
        metadata: dict[str, str] | None = None,
    ) -> Artifact:
        """Write net.onnx in floats and net.scale; raises UnsupportedError or OutputError."""
        return export_beside(
            model, path, example=example, metadata=metadata, format=self.format, opset=self.opset, suffix=SUFFIX,
            what=WHAT, text=_scales,
        )  # fmt: skip

    def read_back(self, path: str | Path) -> ReadBack:
        """The encodings of activations; raises ArtifactError."""
        _, texts = read_beside(path, format=self.format)
        found = {}
        for line in texts[SUFFIX].splitlines():
            name, scale, zero_point = line.split()
            if zero_point != "0":
                raise ArtifactError(f"{name} has the zero point {zero_point}: Tengine's int8 has none")
            found[name] = symmetric_bytes(float(scale), lowest=-127)
        return ReadBack(activations=found, weights={})


def _scales(network: FloatNetwork) -> tuple[str, list[str]]:
    check_symmetric_bytes(network.encodings, lowest=-127, what=WHAT)
    lines = []
    for name, encoding in whole_tensors(network, WHAT).items():
        lines.append(f"{name} {float(encoding.scale)!r} 0")
    values = {str(node.outputs[0].name): node for node in network.program.graph}
    for name, encoding in network.encodings.activations.items():
        node = values.get(name)
        before = None if node is None or node.inputs[0] is None else node.inputs[0].producer()
        if node is not None and node.op_type in ("Relu", "Clip") and before is not None and before.op_type == "Conv":
            lines.append(f"{before.outputs[0].name} {float(encoding.scale)!r} 0")
    return "\n".join([*lines, ""]), rounded_otherwise(network, WHAT)
