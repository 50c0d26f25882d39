"""TensorRT's implicit int8: a calibration cache, or dynamic ranges, beside a float network.

The cache is read by `trtexec --onnx=net.onnx --int8 --calib=net.cache` and by calibrators that return it from
`read_calibration_cache`. Its first line names the release that may read it, so give yours:
`TensorRtCache(version=...)`; then one line for each tensor, `name: ` and the bits of the float32 scale as eight
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
from dataclasses import dataclass
from pathlib import Path
from typing import final

from torch import Tensor, fx

from isobit.core.artifact import Artifact
from isobit.core.errors import ArtifactError
from isobit.export.beside import export_beside, parsed, read_beside, to_text
from isobit.export.encodings import Encoding, ReadBack, check_symmetric_bytes, symmetric_bytes
from isobit.export.float_network import FloatNetwork, whole_tensors
from isobit.export.own_rounding import rounded_otherwise

WHAT = "TensorRT"


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class TensorRtCache:
    """Settings of the exporter for calibration caches. `version` is TensorRT's own number, 8401 for 8.4.1."""

    format: str = "tensorrt-cache"
    opset: int = 17
    version: int = 8401

    def export(
        self,
        model: fx.GraphModule,
        path: str | Path,
        *,
        example: tuple[Tensor, ...],
        metadata: dict[str, str] | None = None,
    ) -> Artifact:
        """Write net.onnx in floats and net.cache; raises UnsupportedError or OutputError."""

        def text(network: FloatNetwork) -> tuple[str, list[str]]:
            lines = [f"{name}: {struct.pack('>f', e.scale).hex()}" for name, e in _scales(network).items()]
            return "\n".join([f"TRT-{self.version}-EntropyCalibration2", *lines, ""]), rounded_otherwise(network, WHAT)

        return export_beside(
            model, path, example=example, metadata=metadata, format=self.format, opset=self.opset, suffix=".cache",
            what=WHAT, text=text,
        )  # fmt: skip

    def read_back(self, path: str | Path) -> ReadBack:
        """The encodings of activations; raises ArtifactError."""
        _, texts = read_beside(path, format=self.format)
        header, *lines = texts[".cache"].splitlines()
        if not header.startswith("TRT-") or not header.endswith("-EntropyCalibration2"):
            raise ArtifactError(f"the cache beside {path} starts with {header!r}, not as TensorRT's do")
        found = {}
        for line in lines:
            name, _, bits = line.rpartition(": ")
            (scale,) = struct.unpack(">f", bytes.fromhex(bits.zfill(8)))
            found[name] = symmetric_bytes(scale, lowest=-128)
        return ReadBack(activations=found, weights={})


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class TensorRtRanges:
    """Settings of the exporter for dynamic ranges as JSON."""

    format: str = "tensorrt-ranges"
    opset: int = 17

    def export(
        self,
        model: fx.GraphModule,
        path: str | Path,
        *,
        example: tuple[Tensor, ...],
        metadata: dict[str, str] | None = None,
    ) -> Artifact:
        """Write net.onnx in floats and net.json; raises UnsupportedError or OutputError."""

        def text(network: FloatNetwork) -> tuple[str, list[str]]:
            ranges = {name: 127 * float(e.scale) for name, e in _scales(network).items()}
            return to_text({"tensorrt": {"blob_range": ranges}}), rounded_otherwise(network, WHAT)

        return export_beside(
            model, path, example=example, metadata=metadata, format=self.format, opset=self.opset, suffix=".json",
            what=WHAT, text=text,
        )  # fmt: skip

    def read_back(self, path: str | Path) -> ReadBack:
        """The encodings of activations; raises ArtifactError."""
        _, texts = read_beside(path, format=self.format)
        ranges = parsed(path, texts[".json"])["tensorrt"]["blob_range"]
        return ReadBack(
            activations={name: symmetric_bytes(r / 127, lowest=-128) for name, r in ranges.items()}, weights={}
        )


def _scales(network: FloatNetwork) -> Mapping[str, Encoding]:
    check_symmetric_bytes(network.encodings, lowest=-128, what=WHAT)
    return whole_tensors(network, WHAT)
