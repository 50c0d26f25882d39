"""AMCT's record beside a float network, for Ascend: scales and offsets of each quantized layer as protobuf text.

AMCT's `convert_model` (amct_onnx) takes net.onnx and net.txt and writes the deployable model. A record is a layer's
name and {scale_d, offset_d, scale_w, offset_w, skip_fusion}: q = round(x / scale_d) + offset_d in signed bytes for the
input, q = round(w / scale_w) + offset_w for the weight. Batch normalization is folded already, so `skip_fusion` is
true.

Sources: "Record Files" with the protobuf definition, and what may stand in it (offset_w 0 alone; scales per channel for
Conv2d alone; ONNX opset 11),
https://www.hiascend.com/document/detail/en/canncommercial/800/devaids/amct/atlasamct_16_0165.html; signed bytes for
asymmetric activations too, .../atlasamct_16_0385.html ("quantization data format normalization"). Notes name the layers
that go beyond what AMCT takes. AMCT was not run.
"""

import re
from collections.abc import Iterator

import numpy as np

from isobit.core.errors import ArtifactError, UnsupportedError
from isobit.export.encodings import Encoding, Encodings, ReadBack, from_offset, read_integers, with_axes
from isobit.export.float_network import FloatNetwork
from isobit.export.per_layer import QuantizedLayer, layer_names, quantized_layers
from isobit.export.vendor_format import Held, Text, VendorFormat


def ascend() -> VendorFormat:
    """AMCT's record net.txt beside net.onnx in floats."""
    return VendorFormat(format="ascend", what="AMCT's record", opset=11, suffix=".txt", write=_records, read=_read)


def _records(network: FloatNetwork) -> Text:
    blocks, shifted, per_channel = [], [], []
    for q in quantized_layers(network):
        blocks.append(_record(q))
        shifted += [q.name] if _zero_point(q.weight).any() else []
        per_channel += [q.name] if q.weight.scale.ndim and q.layer.node.op_type != "Conv" else []
    notes = []
    if shifted:
        notes.append(
            f"AMCT's documentation allows weights without zero points alone; these have some: {_list(shifted)}"
        )
    if per_channel:
        notes.append(
            f"AMCT's documentation allows scales per channel for Conv2d alone; also here: {_list(per_channel)}"
        )
    return "".join(blocks), notes


def _read(held: Held) -> ReadBack:
    """The encodings of layers' inputs and weights, and the integers that follow."""
    named = layer_names(held.graph)
    activations, weights = {}, {}
    for name, fields in _parse(held.text):
        if name not in named or not fields.keys() >= {"scale_d", "offset_d", "scale_w", "offset_w"}:
            raise ArtifactError(
                f"the record of {name!r} beside {held.path} is incomplete, or of no layer of the network"
            )
        activations[named[name].x] = _encoding(fields["scale_d"], fields["offset_d"])
        weights[named[name].weight] = _encoding(fields["scale_w"], fields["offset_w"])
    return read_integers(held.graph, Encodings(activations=activations, weights=with_axes(held.graph, weights)))


def _record(q: QuantizedLayer) -> str:
    for encoding in (q.x, q.weight):
        if encoding.bits != 8:
            raise UnsupportedError(f"{q.name}: AMCT's record is of 8 bits, not {encoding.bits}")
    scales, offsets = (np.atleast_1d(v) for v in (q.weight.scale, _zero_point(q.weight)))
    fields = [("scale_d", repr(float(q.x.scale))), ("offset_d", str(int(_zero_point(q.x))))]
    fields += [("scale_w", repr(float(s))) for s in scales] + [("offset_w", str(int(o))) for o in offsets]
    lines = "".join(f"    {key}: {value}\n" for key, value in (*fields, ("skip_fusion", "true")))
    return f'record {{\n  key: "{q.name}"\n  value {{\n{lines}  }}\n}}\n'


def _zero_point(encoding: Encoding) -> np.ndarray:
    """That of signed bytes, which 0 stands for."""
    found: np.ndarray = -128 - encoding.offset
    return found


def _encoding(scales: list[float], offsets: list[float]) -> Encoding:
    scale, offset = (np.array(v) if len(scales) > 1 else v[0] for v in (scales, offsets))
    return from_offset(bits=8, scale=scale, offset=-128 - np.asarray(offset), symmetric=not np.any(offset))


def _parse(text: str) -> Iterator[tuple[str, dict[str, list[float]]]]:
    """Each record's key and its numbers by field."""
    for key, body in re.findall(r'record \{\s*key: "([^"]*)"\s*value \{([^}]*)\}\s*\}', text):
        fields: dict[str, list[float]] = {}
        for name, value in re.findall(r"(\w+): (\S+)", body):
            if name != "skip_fusion":
                fields.setdefault(name, []).append(float(value))
        yield key, fields


def _list(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
