"""OpenVINO's IR: net.xml and net.bin, activations behind FakeQuantize, weights as bytes with their scales.

`openvino.Core().read_model("net.xml")` reads it, and the CPU plugin computes it with integers. FakeQuantize has 2^bits
levels (one less for a narrow format) from il = lowest · scale to ih = highest · scale, and the same ends behind; a
weight is a constant of int8, or of uint8 where a zero point is needed, behind Convert, Subtract and Multiply. The file
carries isobit's metadata as runtime information under `isobit`.

Sources: the pages FakeQuantize-1 and "OpenVINO Low Precision Transformations" of https://docs.openvino.ai. Run on
OpenVINO 2026.4 in tests/export/test_openvino_ir.py.
"""

import importlib.util
import os
import shutil
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import onnx_ir as ir
from torch import Tensor, fx

from isobit.core.artifact import Artifact, artifact_of, own_metadata
from isobit.core.errors import ArtifactError, MissingExtraError
from isobit.core.files import atomic_path
from isobit.export.beside import check_places
from isobit.export.encodings import Encoding, ReadBack, array, from_offset
from isobit.export.float_network import FloatNetwork, float_network, whole_tensors

WEIGHTS = ".bin"
LAYERS = frozenset({"Convolution", "GroupConvolution", "ConvolutionBackpropData", "MatMul"})


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class OpenVinoIr:
    """Settings of the exporter for OpenVINO's IR."""

    format: str = "openvino"

    def export(
        self,
        model: fx.GraphModule,
        path: str | Path,
        *,
        example: tuple[Tensor, ...],
        metadata: dict[str, str] | None = None,
    ) -> Artifact:
        """Write net.xml, the path, and net.bin; raises UnsupportedError, OutputError or MissingExtraError."""
        path = Path(path)
        check_places(path, [WEIGHTS], instead=".xml")
        network = float_network(model, example, what="OpenVINO's IR")
        written = _with_quantizers(network)
        held = own_metadata(
            metadata, target=network.target, integers_sha256=network.integers_sha256, format=self.format
        )
        for key, value in held.items():
            written.set_rt_info(value, key.split(".", 1))
        weights = path.with_suffix(WEIGHTS)
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            temporary = [stack.enter_context(atomic_path(place)) for place in (path, weights)]
            _openvino().serialize(written, folder / "net.xml", folder / "net.bin")  # it insists on these suffixes
            for place, suffix in zip(temporary, (".xml", ".bin"), strict=True):
                shutil.copyfile(folder / f"net{suffix}", place)
        return artifact_of(path, format=self.format, metadata=held, beside=(weights,), notes=network.notes)

    def read_back(self, path: str | Path) -> ReadBack:
        """The encodings and integers of the IR; raises ArtifactError."""
        path = Path(path)
        try:
            model = _openvino().Core().read_model(path, path.with_suffix(WEIGHTS))
        except RuntimeError as error:
            raise ArtifactError(f"{path} is missing, truncated, or no IR of OpenVINO. Export it again") from error
        if not model.has_rt_info(["isobit", "format"]) or _info(model, "format") != self.format:
            raise ArtifactError(f"{path} was not written by isobit's exporter {self.format}")
        return _read(model)


def _with_quantizers(network: FloatNetwork) -> Any:
    """The network as a model of OpenVINO with FakeQuantize and integer weights."""
    openvino = _openvino()
    activations = {n: e for n, e in whole_tensors(network, "OpenVINO's IR").items() if n not in network.moved}
    model = openvino.Core().read_model(ir.to_proto(network.program).SerializeToString())
    outputs = {name: out for op in model.get_ordered_ops() for out in op.outputs() for name in out.get_names()}
    for name, encoding in activations.items():
        _quantize(outputs[name], encoding, name)
    constants = {op.get_friendly_name(): op for op in model.get_ordered_ops() if op.get_type_name() == "Constant"}
    for name, encoding in network.encodings.weights.items():
        _compress(constants[name], array(network.program.graph, name), encoding)
    model.validate_nodes_and_infer_types()
    for number, op in enumerate(model.get_ordered_ops()):
        if op.get_friendly_name() == op.get_name():  # numbered by a counter of the process: other bytes each time
            op.set_friendly_name(f"{op.get_type_name()}.{number}")
    return model


def _quantize(x: Any, encoding: Encoding, name: str) -> None:
    from openvino import opset13 as ops

    readers = list(x.get_target_inputs())
    ends = [np.float32(k * np.float64(encoding.scale)) for k in (encoding.lowest, encoding.highest)]
    low, high = (ops.constant(np.asarray(end, np.float32)) for end in ends)
    levels = int(encoding.highest - encoding.lowest) + 1
    quantizer = ops.fake_quantize(x, low, high, low, high, levels, name=f"{name}.FakeQuantize")
    for reader in readers:
        reader.replace_source_output(quantizer.output(0))


def _compress(constant: Any, w: np.ndarray, encoding: Encoding) -> None:
    from openvino import opset13 as ops

    readers = list(constant.output(0).get_target_inputs())
    name = constant.get_friendly_name()
    shape = [-1 if i == encoding.axis else 1 for i in range(w.ndim)] if encoding.scale.ndim else [1] * w.ndim
    k = encoding.integers(w)
    fits = k.min() >= -128 and k.max() <= 127
    shift = np.zeros_like(encoding.offset) if fits else encoding.offset
    q = (k - shift.reshape(shape)).astype(np.int8 if fits else np.uint8)
    values = ops.convert(ops.constant(q, name=f"{name}.q"), "f32")
    if shift.any():
        values = ops.subtract(values, ops.constant((-shift).astype(np.float32).reshape(shape)))
    product = ops.multiply(values, ops.constant(encoding.scale.reshape(shape)), name=name)
    for reader in readers:
        reader.replace_source_output(product.output(0))


def _read(model: Any) -> ReadBack:
    activations: dict[str, Encoding] = {}
    weights: dict[str, Encoding] = {}
    integers: dict[str, np.ndarray] = {}
    operations = model.get_ordered_ops()
    for op in operations:
        kind, name = op.get_type_name(), op.get_friendly_name()
        if kind == "FakeQuantize":
            activations[name.removesuffix(".FakeQuantize")] = _of_ends(op)
        elif kind == "Multiply" and (found := _integers(op)) is not None:
            integers[name], weights[name] = found
    constants = {op.get_friendly_name(): op for op in operations if op.get_type_name() == "Constant"}
    for op in operations:
        if op.get_type_name() in LAYERS:
            x, w = (_behind(op.input_value(i).get_node()) for i in (0, 1))
            bias = constants.get(w.removesuffix(".weight") + ".bias")
            if bias is not None and w in weights and x.removesuffix(".FakeQuantize") in activations:
                step = activations[x.removesuffix(".FakeQuantize")].scale * weights[w].scale
                b = bias.get_data().astype(np.float64).reshape(-1)
                integers[bias.get_friendly_name()] = np.rint(b / step).astype(np.int32)
    return ReadBack(activations=activations, weights=weights, integers=integers)


def _behind(op: Any) -> str:
    """The name of what an op moves."""
    while op.get_type_name() in ("Reshape", "Transpose", "Squeeze", "Unsqueeze"):
        op = op.input_value(0).get_node()
    return str(op.get_friendly_name())


def _of_ends(op: Any) -> Encoding:
    """From the ends and the number of levels: scale = (ih - il) / (levels - 1), lowest = il / scale."""
    low, high = (op.input_value(i).get_node().get_data().astype(np.float64) for i in (1, 2))
    levels = int(op.get_attributes()["levels"])
    scale = float((high - low).item()) / (levels - 1)
    bits, lowest = (levels - 1).bit_length(), round(float(low.item()) / scale)
    narrow = levels == (1 << bits) - 1
    middle = lowest - int(narrow) == -(1 << (bits - 1))
    return from_offset(bits=bits, scale=scale, offset=lowest - int(narrow), symmetric=middle, narrow=narrow)


def _integers(multiply: Any) -> tuple[np.ndarray, Encoding] | None:
    """The integers and the scales behind a product, None where it is another one."""
    op, scales = (multiply.input_value(i).get_node() for i in (0, 1))
    shift: np.ndarray = np.zeros((), np.int32)
    if op.get_type_name() == "Subtract":
        shift = np.rint(op.input_value(1).get_node().get_data()).astype(np.int32)
        op = op.input_value(0).get_node()
    if op.get_type_name() != "Convert" or op.input_value(0).get_node().get_type_name() != "Constant":
        return None
    q, scale = op.input_value(0).get_node().get_data(), scales.get_data()
    axis = next((i for i, size in enumerate(scale.shape) if size > 1), 0)
    one = scale.size == 1 and q.shape[axis] > 1
    first = (-128 if q.dtype == np.int8 else 0) - shift
    flat = (v.reshape(-1)[0] if one else v.reshape(-1) for v in (scale, np.broadcast_to(first, scale.shape)))
    values, offset = flat
    encoding = from_offset(bits=8, scale=values, offset=offset, symmetric=not shift.any(), axis=axis)
    return q.astype(np.int32) - shift, encoding


def _info(model: Any, key: str) -> str:
    return str(model.get_rt_info(["isobit", key]).astype(str))


def _openvino() -> Any:
    if not importlib.util.find_spec("openvino"):
        raise MissingExtraError("OpenVINO", "openvino")
    os.environ.setdefault("OPENVINO_TELEMETRY_ENABLED", "0")
    import openvino

    return openvino
