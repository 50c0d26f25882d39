"""Tengine's scale file beside a float network: `name scale zero_point`, one activation a line.

Tengine's quant tool takes it with `-f net.scale` beside the model that its convert tool makes of net.onnx. That tool
joins a convolution and the ReLU behind it under the convolution's name, so that the output of the convolution is listed
too, with the scale of the ReLU's. Weights are rounded by the quant tool, 127 for the largest magnitude of each output
channel; a note counts the channels where that gives other integers.

Sources: the `for_tengine.scale` of https://github.com/ModelTC/MQBench/blob/main/mqbench/deploy/deploy_tengine.py, and
https://github.com/OAID/Tengine/blob/tengine-lite/doc/docs_en/user_guides/quant_tool_int8.md. The tool was not run.
"""

from isobit.core.errors import ArtifactError
from isobit.export.encodings import ReadBack, check_symmetric_bytes, symmetric_bytes
from isobit.export.float_network import FloatNetwork, whole_tensors
from isobit.export.own_rounding import rounded_otherwise
from isobit.export.vendor_format import Held, Text, VendorFormat

WHAT = "Tengine"


def tengine() -> VendorFormat:
    """Tengine's net.scale beside net.onnx in floats."""
    return VendorFormat(format="tengine", what=WHAT, opset=11, suffix=".scale", write=_scales, read=_read)


def _scales(network: FloatNetwork) -> Text:
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


def _read(held: Held) -> ReadBack:
    """The encodings of activations."""
    found = {}
    for line in held.text.splitlines():
        name, scale, zero_point = line.split()
        if zero_point != "0":
            raise ArtifactError(f"{name} has the zero point {zero_point}: Tengine's int8 has none")
        found[name] = symmetric_bytes(float(scale), lowest=-127)
    return ReadBack(activations=found, weights={})
