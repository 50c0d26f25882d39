"""AIMET's encodings, which SNPE, QNN and QAIRT take beside a float network.

`snpe-onnx-to-dlc` and `qnn-onnx-converter` read the file with `--quantization_overrides`, `qairt-quantizer` and
`qairt-converter` likewise, and AIMET itself with `load_encodings`. Biases are in it as 32 bits at s_x · s_w; give the
converter `--bias_bitwidth 32` all the same, since its own default is 8 in older releases.

x = (q + offset) · scale with q in 0..2^bitwidth - 1, so that the offset is never above 0 and -128 for signed bytes
without a zero point. Version 0.6.1: for each tensor a list with one entry or one for each channel, booleans as text;
version 1.0.0: a list of tensors, each with lists of scales and offsets. Sources: AIMET's documentation, "Encoding
format specification" (https://quic.github.io/aimet-pages/), and files of AIMET 2 with its tests in
https://github.com/quic/aimet (`"enc_type": "PER_CHANNEL"`, `"offset": [-128.0]`, `"bw"`, `"is_sym"`). Whether a release
of SNPE takes encodings of biases was not tried.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from isobit.core.errors import ArtifactError, UnsupportedError
from isobit.export.beside import to_text
from isobit.export.encodings import (
    Encoding,
    Encodings,
    ReadBack,
    array,
    bias_encodings,
    from_offset,
    layers,
    read_integers,
    with_axes,
)
from isobit.export.float_network import FloatNetwork, whole_tensors
from isobit.export.vendor_format import Held, Text, VendorFormat

SUFFIX = ".encodings"
WHAT = "a file of AIMET encodings"
KINDS = ("activation_encodings", "param_encodings")


def aimet_0_6() -> VendorFormat:
    """AIMET's net.encodings, version 0.6.1, beside net.onnx in floats."""
    return VendorFormat(format="aimet", what=WHAT, opset=17, suffix=SUFFIX, write=_by_name, read=_read_names)


def aimet_1_0() -> VendorFormat:
    """The same, version 1.0.0: lists, without minimum and maximum."""
    return VendorFormat(format="aimet-1.0", what=WHAT, opset=17, suffix=SUFFIX, write=_in_lists, read=_read_lists)


def _by_name(network: FloatNetwork) -> Text:
    activations, parameters = _encodings(network)
    value = {
        "version": "0.6.1",
        KINDS[0]: {name: _entries(e) for name, e in activations.items()},
        KINDS[1]: {name: _entries(e) for name, e in parameters.items()},
    }
    return to_text(value), ()


def _in_lists(network: FloatNetwork) -> Text:
    activations, parameters = _encodings(network)
    for name, encoding in activations.items():
        if encoding.narrow and not encoding.non_negative:
            raise UnsupportedError(
                f"{name} leaves the lowest level out, which encodings of version 1.0.0 cannot say: use the format aimet"
            )
    value = {
        "version": "1.0.0",
        KINDS[0]: [_named(name, e) for name, e in activations.items()],
        KINDS[1]: [_named(name, e) for name, e in parameters.items()],
    }
    return to_text(value), ()


def _encodings(network: FloatNetwork) -> tuple[Mapping[str, Encoding], Mapping[str, Encoding]]:
    found = network.encodings
    activations = whole_tensors(network, WHAT)
    return activations, {**found.weights, **bias_encodings(network.program.graph, found)}


def _entries(encoding: Encoding) -> list[dict[str, Any]]:
    scales, offsets, lowest, highest = (
        np.atleast_1d(v) for v in (encoding.scale, encoding.offset, encoding.lowest, encoding.highest)
    )
    return [
        {
            "bitwidth": encoding.bits,
            "dtype": "int",
            "is_symmetric": str(encoding.symmetric),
            "max": float(high) * float(scale),
            "min": float(low) * float(scale),
            "offset": int(offset) + int(encoding.narrow),
            "scale": float(scale),
        }
        for scale, offset, low, high in zip(scales, offsets, lowest, highest, strict=True)
    ]


def _encoding(entries: list[dict[str, Any]]) -> Encoding:
    """The inverse of `_entries`: levels from the offset to max / scale."""
    first, per_channel = entries[0], len(entries) > 1
    if first["dtype"] != "int":
        raise ArtifactError(f"an encoding of the type {first['dtype']} is none of integers")
    scale = np.array([e["scale"] for e in entries], np.float32)
    lowest = np.array([e["offset"] for e in entries], np.int64)
    highest = np.rint(np.array([e["max"] / e["scale"] for e in entries])).astype(np.int64)
    shape = (-1,) if per_channel else ()
    scale, low, high = (
        scale.reshape(shape),
        lowest.astype(np.int32).reshape(shape),
        highest.astype(np.int32).reshape(shape),
    )
    return Encoding(
        bits=first["bitwidth"], symmetric=first["is_symmetric"] == "True", scale=scale, lowest=low, highest=high
    )


def _named(name: str, encoding: Encoding) -> dict[str, Any]:
    return {
        "name": name,
        "bw": encoding.bits,
        "dtype": "INT",
        "enc_type": "PER_CHANNEL" if encoding.scale.ndim else "PER_TENSOR",
        "is_sym": encoding.symmetric,
        "scale": [float(s) for s in np.atleast_1d(encoding.scale)],
        "offset": [int(o) for o in np.atleast_1d(encoding.offset)],
    }


def _from_lists(entry: dict[str, Any]) -> Encoding:
    if entry["dtype"] != "INT" or entry["enc_type"] not in ("PER_TENSOR", "PER_CHANNEL"):
        raise ArtifactError(f"{entry['name']}: no encoding of integers per tensor or channel: {entry['enc_type']}")
    alone = entry["enc_type"] == "PER_TENSOR"
    scale, offset = (entry[k][0] if alone else entry[k] for k in ("scale", "offset"))
    return from_offset(bits=entry["bw"], scale=scale, offset=offset, symmetric=entry["is_sym"])


def _read_names(held: Held) -> ReadBack:
    found = held.json()
    activations, parameters = ({name: _encoding(entries) for name, entries in found[k].items()} for k in KINDS)
    return _read(held.graph, activations, parameters)


def _read_lists(held: Held) -> ReadBack:
    found = held.json()
    activations, parameters = ({e["name"]: _from_lists(e) for e in found[k]} for k in KINDS)
    return _read(held.graph, activations, parameters)


def _read(graph: ir.Graph, activations: dict[str, Encoding], parameters: dict[str, Encoding]) -> ReadBack:
    biases = {layer.bias for layer in layers(graph)}
    weights = with_axes(graph, {name: e for name, e in parameters.items() if name not in biases})
    found = read_integers(graph, Encodings(activations=activations, weights=weights))
    own = {name: parameters[name].integers(array(graph, name)) for name in parameters if name in biases}
    return ReadBack(activations=activations, weights=weights, integers={**found.integers, **own})
