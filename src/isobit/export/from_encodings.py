"""A float ONNX file with AIMET's encodings as the QDQ file that they mean: what others calibrated, to be judged.

Each tensor with an encoding is followed by QuantizeLinear and DequantizeLinear, which all of its readers see; weights
become integers, clip(rint(w / s)); biases 32 bits at s_x · s_w. Format: see `isobit.export.aimet`. Tensors without an
encoding, and those that AIMET keeps in 16-bit floats, stay float.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, final

import numpy as np
import onnx
from onnx import helper, numpy_helper

from isobit.core.errors import ArtifactError, UnsupportedError
from isobit.core.onnx_file import first_line, read_onnx
from isobit.export.encodings import WEIGHTED, Encoding, from_offset

KINDS = ("activation_encodings", "param_encodings")
_OPSET, _WIDE_OPSET = 13, 21
"""DequantizeLinear has scales for each channel from opset 13 on, and 16 bits from 21."""


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class ReadEncodings:
    """The encodings of a file by tensor; `floats` are tensors that it keeps in floats of 16 bits."""

    activations: Mapping[str, Encoding]
    parameters: Mapping[str, Encoding]
    floats: tuple[str, ...] = ()


def with_encodings(network: str | Path, encodings: str | Path) -> onnx.ModelProto:
    """The QDQ graph of a float ONNX file and the encodings of its tensors.

    Raises ArtifactError for files that are damaged or do not belong together, UnsupportedError for encodings that QDQ
    has no form for.
    """
    model, read = read_onnx(network), read_encodings(encodings)
    if any(n.op_type in ("QuantizeLinear", "DequantizeLinear") for n in model.graph.node):
        raise ArtifactError(f"{network} is quantized already: encodings belong to a float network")
    model = _at_opset(model, read, Path(network))
    _Writing(model, read, Path(encodings)).write()
    del model.metadata_props[:]
    return model


@contextmanager
def quantized_file(network: str | Path, encodings: str | Path | None) -> Iterator[Path]:
    """The file itself, or, with encodings, a QDQ file of the same name that is there for a while."""
    if encodings is None:
        yield Path(network)
        return
    model = with_encodings(network, encodings)
    with TemporaryDirectory() as folder:
        path = Path(folder) / Path(network).name
        onnx.save(model, path)
        yield path


def read_encodings(path: str | Path) -> ReadEncodings:
    """A file of AIMET's encodings, version 0.6.1 or 1.0.0. Raises ArtifactError or UnsupportedError."""
    path = Path(path)
    if not path.is_file():
        raise ArtifactError(f"there is no file {path}")
    try:
        held = json.loads(path.read_text())
        missing = [kind for kind in KINDS if kind not in held]
    except (ValueError, RecursionError, TypeError) as error:
        raise ArtifactError(f"{path} is no file of AIMET's encodings: {first_line(error)}") from error
    if missing or not isinstance(held, dict):
        version = held.get("version", "none") if isinstance(held, dict) else "none"
        raise ArtifactError(
            f"{path} (version {version}) has no {missing[0]}: encodings of the versions 0.6.1 and 1.0.0 are read here"
        )
    found: list[dict[str, Encoding]] = []
    floats: list[str] = []
    for kind in KINDS:
        entries = held[kind]
        try:
            named = {e["name"]: e for e in entries} if isinstance(entries, list) else dict(entries)
        except (TypeError, KeyError, ValueError) as error:
            raise ArtifactError(f"{path}: {kind} is damaged: {first_line(error)}") from error
        encodings = {}
        for name, entry in named.items():
            try:
                encoding = _in_list(entry) if isinstance(entries, list) else _by_name(entry)
            except (TypeError, KeyError, ValueError, IndexError, OverflowError, ZeroDivisionError) as error:
                raise ArtifactError(f"{path}: the encoding of {name} is damaged: {first_line(error)}") from error
            if encoding is None:
                floats.append(name)
            else:
                encodings[name] = _checked(encoding, name)
        found.append(encodings)
    return ReadEncodings(activations=found[0], parameters=found[1], floats=tuple(floats))


def _by_name(entries: Sequence[Mapping[str, Any]]) -> Encoding | None:
    """Version 0.6.1: one entry, or one for each channel; levels from the offset to max / scale."""
    first = entries[0]
    if str(first.get("dtype", "int")).lower() == "float":
        return None
    bits = int(first["bitwidth"])
    grids = [_grid(entry, bits) for entry in entries]
    shape = (-1,) if len(entries) > 1 else ()
    scale, lowest, highest = (np.array(v).reshape(shape) for v in zip(*grids, strict=True))
    return Encoding(
        bits=bits,
        symmetric=str(first.get("is_symmetric", "False")) == "True",
        scale=scale.astype(np.float32),
        lowest=lowest.astype(np.int32),
        highest=highest.astype(np.int32),
    )


def _grid(entry: Mapping[str, Any], bits: int) -> tuple[float, int, int]:
    """Scale, lowest and highest level; older files have the ends alone."""
    low, high = (float(entry[k]) if k in entry else None for k in ("min", "max"))
    if "scale" in entry:
        scale, lowest = float(entry["scale"]), int(entry["offset"])
    elif low is not None and high is not None:
        scale = (high - low) / ((1 << bits) - 1)
        lowest = round(low / scale)
    else:
        raise ValueError("neither a scale nor a minimum and a maximum")
    highest = lowest + (1 << bits) - 1
    if high is not None and bits <= 16:
        highest = min(highest, round(high / scale))
    return scale, lowest, highest


def _in_list(entry: Mapping[str, Any]) -> Encoding | None:
    """Version 1.0.0: lists of scales and offsets."""
    if str(entry["dtype"]).upper() == "FLOAT":
        return None
    if entry["enc_type"] not in ("PER_TENSOR", "PER_CHANNEL"):
        raise UnsupportedError(f"{entry['name']}: an encoding {entry['enc_type']} has no rule here, per channel has")
    alone = entry["enc_type"] == "PER_TENSOR"
    scale, offset = (entry[k][0] if alone else entry[k] for k in ("scale", "offset"))
    return from_offset(bits=int(entry["bw"]), scale=scale, offset=offset, symmetric=bool(entry["is_sym"]))


def _checked(encoding: Encoding, name: str) -> Encoding:
    if not np.isfinite(encoding.scale).all() or not (encoding.scale > 0).all():
        raise ArtifactError(f"{name}: the scale of an encoding has to be a positive number")
    if not 2 <= encoding.bits <= 32 or (encoding.highest <= encoding.lowest).any():
        raise ArtifactError(f"{name}: an encoding of {encoding.bits} bits with these ends has no levels")
    return encoding


def _at_opset(model: onnx.ModelProto, read: ReadEncodings, path: Path) -> onnx.ModelProto:
    wide = any(8 < e.bits <= 16 for e in (*read.activations.values(), *read.parameters.values()))
    wanted = _WIDE_OPSET if wide else _OPSET
    now = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
    if now >= wanted:
        return model
    try:
        return onnx.version_converter.convert_version(model, wanted)
    except Exception as error:  # the converter's own, of any kind
        raise UnsupportedError(
            f"{path} has opset {now}, its quantized form needs {wanted}, and cannot be converted: {first_line(error)}"
        ) from error


@final
class _Writing:
    """The graph while quantizers are put into it."""

    def __init__(self, model: onnx.ModelProto, read: ReadEncodings, path: Path) -> None:
        self.graph, self.read, self.path = model.graph, read, path
        self.constants = {t.name: t for t in self.graph.initializer}
        self.nodes: list[onnx.NodeProto] = []
        self.seen: dict[str, str] = {}
        self.behind: dict[str, str] = {}
        self.axes = _axes(self.graph)

    def write(self) -> None:
        """Put them in, in place. Raises ArtifactError for an encoding whose tensor is not there."""
        tensors = (
            {v.name for v in self.graph.input} | {o for n in self.graph.node for o in n.output} | set(self.constants)
        )
        unknown = [n for n in (*self.read.activations, *self.read.parameters) if n not in tensors]
        if unknown:
            more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
            raise ArtifactError(f"{self.path} has encodings of {unknown[0]!r}{more}, which the network does not have")
        outputs = {v.name for v in self.graph.output}
        for value in list(self.graph.input):
            self.quantized(value.name, value.name)
        for node in list(self.graph.node):
            self.read_by(node)
            self.nodes.append(node)
            for place, name in enumerate(node.output):
                if name in outputs and name in self.read.activations:  # the output keeps its name
                    node.output[place] = f"{name}/float"
                    self.quantized(name, f"{name}/float", result=name)
                else:
                    self.quantized(name, name)
        del self.graph.node[:]
        self.graph.node.extend(self.nodes)
        del self.graph.value_info[:]
        self.forget_unused()

    def read_by(self, node: onnx.NodeProto) -> None:
        """Let a node read what stands behind the quantizers of its inputs; its weight and bias are made integers."""
        for place, name in enumerate(list(node.input)):
            if name in self.behind:
                node.input[place] = self.behind[name]
            elif name in self.constants and place == 2 and node.op_type in WEIGHTED - {"MatMul"}:
                node.input[place] = self.bias(node, name)
            elif name in self.constants and (name in self.read.parameters or name in self.read.activations):
                node.input[place] = self.parameter(name)

    def quantized(self, name: str, source: str, *, result: str = "") -> None:
        """QuantizeLinear and DequantizeLinear behind a tensor with an encoding, a Clip where levels are unused."""
        encoding = self.read.activations.get(name)
        if encoding is None or name in self.constants:
            return
        if encoding.scale.ndim or encoding.bits > 16:
            raise UnsupportedError(f"{name}: an activation has one scale and up to 16 bits in a QDQ file")
        kind: Any = np.uint8 if encoding.bits <= 8 else np.uint16
        offset = int(encoding.offset)
        limits = np.iinfo(kind)
        if not limits.min <= -offset <= limits.max:
            raise UnsupportedError(f"{name}: a grid without zero has no form in a QDQ file")
        grid = [self.constant(f"{name}/scale", encoding.scale), self.constant(f"{name}/zero_point", kind(-offset))]
        q = self.node("QuantizeLinear", [source, *grid], f"{name}/quantized")
        ends = [int(encoding.lowest) - offset, int(encoding.highest) - offset]
        if ends != [int(limits.min), int(limits.max)]:
            low, high = (
                self.constant(f"{name}/{word}", kind(v)) for word, v in zip(("low", "high"), ends, strict=True)
            )
            q = self.node("Clip", [q, low, high], f"{name}/limited")
        self.behind[name] = self.node("DequantizeLinear", [q, *grid], result or f"{name}/dequantized")

    def parameter(self, name: str) -> str:
        """The dequantized integers of a constant, once for all readers."""
        if name in self.seen:
            return self.seen[name]
        encoding = replace(self.read.parameters.get(name) or self.read.activations[name], axis=self.axes.get(name, 0))
        floats = numpy_helper.to_array(self.constants[name])
        self.fits(name, encoding, floats)
        k = encoding.integers(floats)
        low, high = int(encoding.lowest.min()), int(encoding.highest.max())
        kind, zero = _stored(low, high, encoding.bits)
        zeros = np.full(encoding.scale.shape, zero, kind)
        self.seen[name] = self.dequantized(name, (k.astype(np.int64) + zero).astype(kind), encoding, zeros)
        return self.seen[name]

    def bias(self, node: onnx.NodeProto, name: str) -> str:
        """A bias of 32 bits: on its own encoding, or at s_x · s_w; a float where either has none."""
        own = self.read.parameters.get(name)
        if own is None:
            x, w = self.encoding_of(node.input[0]), self.read.parameters.get(node.input[1].removesuffix("/dequantized"))
            if x is None or w is None or node.op_type not in ("Conv", "Gemm"):
                return name
            own = from_offset(bits=32, scale=x.scale * w.scale, offset=-(1 << 31), symmetric=True)
        elif own.bits < 32:
            return self.parameter(name)
        key = f"{name}@{own.scale.tobytes().hex()[:16]}"
        if key not in self.seen:
            data = numpy_helper.to_array(self.constants[name])
            self.fits(name, own, data)
            limits = np.iinfo(np.int32)
            q = np.rint(data.astype(np.float64) / own.scale.astype(np.float64)).clip(limits.min, limits.max)
            self.seen[key] = self.dequantized(
                name if name not in self.seen.values() else key,
                q.astype(np.int32),
                own,
                np.zeros(own.scale.shape, np.int32),
            )
        return self.seen[key]

    def encoding_of(self, tensor: str) -> Encoding | None:
        """The encoding of what a node reads."""
        name = next((k for k, v in self.behind.items() if v == tensor), tensor)
        return self.read.activations.get(name)

    def fits(self, name: str, encoding: Encoding, data: np.ndarray) -> None:
        """Raise ArtifactError where an encoding has scales for another number of channels."""
        if encoding.scale.ndim and (data.ndim <= encoding.axis or data.shape[encoding.axis] != len(encoding.scale)):
            raise ArtifactError(
                f"{self.path}: {len(encoding.scale)} scales of {name} do not fit its shape {data.shape} along axis "
                f"{encoding.axis}"
            )

    def dequantized(self, name: str, q: np.ndarray, encoding: Encoding, zeros: np.ndarray) -> str:
        """An initializer of integers and its DequantizeLinear."""
        parts = {"integers": q, "scale": encoding.scale, "zero_point": zeros}
        names = [self.constant(f"{name}/{word}", data) for word, data in parts.items()]
        axis: dict[str, Any] = {"axis": encoding.axis} if encoding.scale.ndim else {}
        return self.node("DequantizeLinear", names, f"{name}/dequantized", **axis)

    def node(self, op: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, list(inputs), [output], name=output, **attributes))
        return output

    def constant(self, name: str, data: Any) -> str:
        self.graph.initializer.append(numpy_helper.from_array(np.asarray(data), name))
        return name

    def forget_unused(self) -> None:
        """Remove constants that nothing reads any more."""
        used = {name for node in self.graph.node for name in node.input} | {v.name for v in self.graph.output}
        kept = [t for t in self.graph.initializer if t.name in used]
        gone = {t.name for t in self.graph.initializer} - used
        inputs = [v for v in self.graph.input if v.name not in gone]
        del self.graph.initializer[:], self.graph.input[:]
        self.graph.initializer.extend(kept)
        self.graph.input.extend(inputs)


def _stored(low: int, high: int, bits: int) -> tuple[Any, int]:
    """The type of a constant's integers, and what is added to them: nothing where they are signed and fit."""
    signed, unsigned = (np.int8, np.uint8) if bits <= 8 else (np.int16, np.uint16) if bits <= 16 else (np.int32, None)
    limits = np.iinfo(signed)
    if limits.min <= low and high <= limits.max:
        return signed, 0
    if unsigned is None or high - low > np.iinfo(unsigned).max:
        raise UnsupportedError(f"levels of {low} to {high} fit no type of {bits} bits")
    return unsigned, -low


def _axes(graph: onnx.GraphProto) -> dict[str, int]:
    """The axis of the output channels of each weight."""
    found: dict[str, int] = {}
    for node in graph.node:
        if node.op_type in WEIGHTED and len(node.input) > 1:
            turned = any(a.name == "transB" and a.i for a in node.attribute)
            last = node.op_type in ("ConvTranspose", "MatMul") or (node.op_type == "Gemm" and not turned)
            found[node.input[1]] = 1 if last else 0
    return found
