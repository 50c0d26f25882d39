"""PT2E: an ExportedProgram of PyTorch with quantized_decomposed ops around ATen's, as an archive .pt2.

What torchao's `convert_pt2e` leaves behind: activations between quantize_per_tensor and dequantize_per_tensor (one of
those for each reader), weights as int8 behind dequantize_per_channel, float biases. Inductor's x86 passes and
ExecuTorch's partitioners look for this form. The biases are those of the integer network, whole multiples of
s_x · s_w; backends that round them find the same integers.

Source: https://docs.pytorch.org/ao/stable/pt2e_quantization/index.html; compared with torchao 0.18.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor

from isobit.core.errors import ArtifactError, UnsupportedError
from isobit.core.files import atomic_path
from isobit.core.pt2_file import SUFFIX, Call, Pt2, Ref, read_pt2
from isobit.core.pt2_program import saved
from isobit.export.encodings import Encoding, ReadBack
from isobit.export.engine_format import EngineFormat
from isobit.export.litert_graph import needed, static_shapes
from isobit.export.pt2e_graph import Translation
from isobit.export.pt2e_ops import OPS
from isobit.integer.files import QUANTIZERS
from isobit.integer.model import Graph, described_by


def pt2e_archive() -> EngineFormat:
    """PT2E's archive, net.pt2."""
    return EngineFormat(format="pt2e", suffix=SUFFIX, write=write_pt2e, read=_read)


def write_pt2e(path: Path, source: onnx.ModelProto, metadata: dict[str, str]) -> None:
    """Write a QDQ graph as a PT2 archive; raises UnsupportedError, with the op's name."""
    data = translate(source, metadata)
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def translate(source: onnx.ModelProto, metadata: Mapping[str, str]) -> bytes:
    """A QDQ graph as a PT2 archive. Raises UnsupportedError, with the op's name."""
    graph = Graph(source)
    t = Translation(graph, static_shapes(source))
    for name in graph.inputs:
        t.input(name)
    for node in graph.nodes:
        if node.op == "DequantizeLinear" and node.inputs[0] in graph.constants:
            OPS[node.op](t, node)  # a bias may stand behind the product that takes it in
            t.done.add(id(node))
    wanted = needed(graph)
    for node in graph.nodes:
        if id(node) not in wanted or id(node) in t.done:
            continue
        if node.op not in OPS or node.proto.domain not in ("", "ai.onnx"):
            raise UnsupportedError(f"PT2E: {node.name} ({node.op}) has no form in ATen and quantized_decomposed")
        with described_by(node):
            OPS[node.op](t, node)
    example, dynamic = _examples(source, graph)
    metadata = {**metadata, QUANTIZERS: json.dumps(t.places)}
    return saved(t.module(), example, dynamic=dynamic, metadata=metadata)


def _examples(source: onnx.ModelProto, graph: Graph) -> tuple[tuple[Tensor, ...], list[bool]]:
    """Inputs of the right sizes, and which of them have a batch of any size."""
    example, dynamic = [], []
    for value in (v for v in source.graph.input if v.name in graph.inputs):
        first, *rest = value.type.tensor_type.shape.dim
        if not all(d.dim_value for d in rest):
            raise UnsupportedError(f"PT2E: the input {value.name} has sizes that may change besides that of the batch")
        sizes = [first.dim_value or 2, *(d.dim_value for d in rest)]
        example.append(torch.zeros(sizes, dtype=torch.from_numpy(np.zeros(0, graph.input_types[value.name])).dtype))
        dynamic.append(not first.dim_value)
    return tuple(example), dynamic


def _read(path: Path) -> ReadBack:
    program = read_pt2(path)
    if "isobit.integers_sha256" not in program.metadata:
        raise ArtifactError(f"{path} was not written by isobit's exporter pt2e")
    return _encodings(program)


def _encodings(program: Pt2) -> ReadBack:
    activations: dict[str, Encoding] = {}
    weights: dict[str, Encoding] = {}
    integers: dict[str, np.ndarray] = {}
    scales: dict[str, np.ndarray] = {}
    made: dict[str, str] = {}
    for call in program.calls:
        kind, (result, *_) = call.target.removesuffix(".default"), call.results
        source = call.arguments.get("input")
        if kind == "quantized_decomposed.quantize_per_tensor":
            activations[result] = _encoding(call, np.asarray(call.arguments["scale"]), call.arguments["zero_point"])
        elif kind.startswith("quantized_decomposed.") and isinstance(source, Ref):
            scale, zero_point = _grid(call, program)
            scales[result] = scale
            if source.name in program.constants:
                name = made[result] = program.names[source.name]
                weights[name] = _encoding(call, scale, zero_point)
                q = program.constants[source.name].numpy().astype(np.int32)
                along = [-1 if i == weights[name].axis else 1 for i in range(q.ndim)] if scale.ndim else []
                integers[name] = q - np.asarray(zero_point, np.int32).reshape(along)
        elif isinstance(bias := call.arguments.get("bias"), Ref) and bias.name in program.constants:
            x, w = (call.arguments[key].name for key in ("input", "weight"))
            if x in scales and w in scales:
                b = program.constants[bias.name].numpy().astype(np.float64)
                integers[program.names[bias.name]] = np.rint(b / (scales[x] * scales[w])).astype(np.int32)
    return ReadBack(activations=activations, weights=weights, integers=integers)


def _grid(call: Call, program: Pt2) -> tuple[np.ndarray, np.ndarray]:
    """The scales and zero points of a dequantize op."""
    if "scale" in call.arguments:
        return np.asarray(call.arguments["scale"], np.float32), np.asarray(call.arguments["zero_point"], np.int32)
    names = (call.arguments["scales"].name, call.arguments["zero_points"].name)
    if not set(names) <= program.constants.keys():
        raise ArtifactError(f"{call.results[0]}: scales have to be constants")
    scale, zero_point = (program.constants[name].numpy() for name in names)
    return scale.astype(np.float32), zero_point.astype(np.int32)


def _encoding(call: Call, scale: np.ndarray, zero_point: np.ndarray) -> Encoding:
    low, high = int(call.arguments["quant_min"]), int(call.arguments["quant_max"])
    return Encoding(
        bits=(high - low).bit_length(), symmetric=not np.any(zero_point), scale=np.asarray(scale, np.float32),
        lowest=low - np.asarray(zero_point, np.int32), highest=high - np.asarray(zero_point, np.int32),
        axis=int(call.arguments.get("axis", 0)),
    )  # fmt: skip
