"""TensorRT's implicit int8: a calibration cache, or dynamic ranges, beside a float network.

The cache is read by `trtexec --onnx=net.onnx --int8 --calib=net.cache` and by calibrators that return it from
`read_calibration_cache`. Its first line names the release that may read it, so give yours:
`tensorrt_cache(version=...)`; then one line for each tensor, `name: ` and the bits of the float32 scale as eight
hexadecimal digits, the sign first. The ranges are JSON, {"tensorrt": {"blob_range": {name: 127 · scale}}}, for a build
script that calls `tensor.set_dynamic_range(-range, range)`; they are MQBench's `*_clip_ranges.json`. TensorRT rounds
weights by itself, with the largest magnitude of each output channel as 127: a note counts the channels where that gives
other integers.

Sources: ONNX Runtime's reader of the native cache ("tensor name : scale in 32-bit single precision IEEE754 format",
onnxruntime/core/providers/tensorrt/tensorrt_execution_provider_utils.h); `context = {"tensorrt": {"blob_range": ...}}`,
https://github.com/ModelTC/MQBench/blob/main/mqbench/deploy/deploy_linear.py; implicit quantization,
https://docs.nvidia.com/deeplearning/tensorrt/. Not run on a device: TensorRT needs a GPU.
"""

import struct
from collections.abc import Mapping

from isobit.core.errors import ArtifactError
from isobit.export.beside import to_text
from isobit.export.encodings import Encoding, ReadBack, check_symmetric_bytes, symmetric_bytes
from isobit.export.float_network import FloatNetwork, whole_tensors
from isobit.export.own_rounding import rounded_otherwise
from isobit.export.vendor_format import Held, Text, VendorFormat

WHAT = "TensorRT"


def tensorrt_cache(*, version: int = 8401) -> VendorFormat:
    """TensorRT's calibration cache net.cache beside net.onnx; `version` is its own number, 8401 for 8.4.1."""

    def write(network: FloatNetwork) -> Text:
        lines = [f"{name}: {struct.pack('>f', e.scale).hex()}" for name, e in _scales(network).items()]
        return "\n".join([f"TRT-{version}-EntropyCalibration2", *lines, ""]), rounded_otherwise(network, WHAT)

    return VendorFormat(format="tensorrt-cache", what=WHAT, opset=17, suffix=".cache", write=write, read=_read_cache)


def tensorrt_ranges() -> VendorFormat:
    """Dynamic ranges as net.json beside net.onnx."""
    return VendorFormat(format="tensorrt-ranges", what=WHAT, opset=17, suffix=".json", write=_ranges, read=_read_ranges)


def _ranges(network: FloatNetwork) -> Text:
    ranges = {name: 127 * float(e.scale) for name, e in _scales(network).items()}
    return to_text({"tensorrt": {"blob_range": ranges}}), rounded_otherwise(network, WHAT)


def _read_cache(held: Held) -> ReadBack:
    """The encodings of activations."""
    header, *lines = held.text.splitlines()
    if not header.startswith("TRT-") or not header.endswith("-EntropyCalibration2"):
        raise ArtifactError(f"the cache beside {held.path} starts with {header!r}, not as TensorRT's do")
    found = {}
    for line in lines:
        name, _, bits = line.rpartition(": ")
        (scale,) = struct.unpack(">f", bytes.fromhex(bits.zfill(8)))
        found[name] = symmetric_bytes(scale, lowest=-128)
    return ReadBack(activations=found, weights={})


def _read_ranges(held: Held) -> ReadBack:
    """The encodings of activations."""
    ranges = held.json()["tensorrt"]["blob_range"]
    return ReadBack(activations={name: symmetric_bytes(r / 127, lowest=-128) for name, r in ranges.items()}, weights={})


def _scales(network: FloatNetwork) -> Mapping[str, Encoding]:
    check_symmetric_bytes(network.encodings, lowest=-128, what=WHAT)
    return whole_tensors(network, WHAT)
