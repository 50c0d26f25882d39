"""Every target in every format that it lists: what is written reads back with the integers of the simulation.

ONNX is read with onnx's own evaluator, which unpacks what lies in bit planes; LiteRT with its interpreter; a vendor's
format with its reader. 16-bit integers are int16 and uint16 in files, 16-bit floats float16, logarithms indices into a
table of their values.
"""

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import fx

import isobit
from export.linear_networks import from_bits
from isobit.core.granularity import PerGroup
from isobit.core.litert_file import missing
from isobit.export import READERS
from isobit.graph.convert import convert, hash_integers, integers
from isobit.integer.files import load_qdq
from isobit.targets import TARGETS
from vendor import WITHOUT_WEIGHTS, declared_grids, declared_key, read_key, simulated_weights
from zoo import small_networks

NOT_STATED = {
    "onnx-qoperator": (".bias_scale",),
    "litert": ("zero_point",),
    "ncnn-int8": ("scale", "zero_point", ".bias_q"),
}
"""What follows from other numbers there, or is moved by 128; ncnn's files hold 1 / s, and biases in float."""

PAIRS = [(target, format) for target, profile in TARGETS.items() for format in profile.formats]
WIDE = [(target, "onnx") for target, profile in TARGETS.items() if 16 in profile.widths and profile.ranges != "cast"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("formats")


@dataclass(frozen=True)
class Made:
    """A model quantized for a target, and what its file has to hold."""

    model: fx.GraphModule
    deployed: fx.GraphModule


@functools.cache
def made_once(target: str, bits: int | None = None) -> Made:
    net, inputs = small_networks()["residual"]
    grouped = isinstance(TARGETS[target].weight.granularity, PerGroup)
    settings = {"group_size": 16} if grouped else {"bits": bits} if bits else {}
    model = isobit.quantize(net, [(inputs,)], target=target, **settings)
    return Made(model, convert(model))


def test_every_target_is_here() -> None:
    assert {target for target, _ in PAIRS} == set(TARGETS)
    assert {format for _, format in PAIRS} >= {"onnx", "litert", *READERS} - {"tensorrt-cache"}


@pytest.mark.parametrize(("target", "format"), PAIRS)
def test_it_reads_back_with_equal_integers(target: str, format: str, folder: Path) -> None:
    check(made_once(target), format, folder / f"{target}.{format}")


@pytest.mark.parametrize(("target", "format"), WIDE)
def test_integers_of_sixteen_bits_read_back(target: str, format: str, folder: Path) -> None:
    made = made_once(target, 16)
    assert any(
        value.dtype.itemsize == 2 and not value.dtype.is_floating_point for value in integers(made.deployed).values()
    )
    check(made, format, folder / f"{target}.16.{format}")


def check(made: Made, format: str, path: Path) -> None:
    """Write the file and compare what a reader finds in it with the simulation."""
    if format == "litert" and missing():
        pytest.skip(missing())
    path.mkdir()
    name = {"litert": "net.tflite", "ncnn-int8": "net.param"}.get(format, "net.onnx")
    artifact = isobit.export(made.model, path / name, format=format)
    assert artifact.integers_sha256 == hash_integers(made.deployed)
    expected = integers(made.deployed)
    assert any(name.endswith(".q") for name in expected)
    if format in READERS:
        check_read_back(made, format, artifact.path)
        return
    if format == "ncnn-int8":
        stored = in_graph(load_qdq(artifact.path))
    else:
        stored = in_litert(artifact.path) if format == "litert" else in_graph(onnx.load(artifact.path))
    wrong = [
        name
        for name, value in expected.items()
        if not name.endswith(NOT_STATED.get(format, ()))
        and not (name.endswith("zero_point") and not value.any())
        and (str(value.numpy().dtype), value.numpy().tobytes()) not in stored
    ]
    assert wrong == []


def check_read_back(made: Made, format: str, path: Path) -> None:
    read = READERS[format]().read_back(path)
    expected = {} if format in WITHOUT_WEIGHTS else simulated_weights(made.model)
    assert read.integers.keys() == expected.keys()
    for name, k in expected.items():
        np.testing.assert_array_equal(read.integers[name], k, err_msg=name)
    declared = {declared_key(grid) for grid in declared_grids(made.model)}
    assert {read_key(grid) for grid in read.activations.values()} <= declared
    assert read.activations


Stored = set[tuple[str, bytes]]
"""The types and bytes of tensors."""


def in_graph(model: onnx.ModelProto) -> Stored:
    """All constants of a graph, those that its own ops compute from constants among them, as stored and transposed."""
    held = {t.name: small(numpy_helper.to_array(t)) for t in model.graph.initializer}
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    for node in model.graph.node:
        if node.op_type == "MatMulNBits":
            held |= of_bits(node, held)
        elif node.input and all(name in held for name in node.input if name) and node.op_type != "DequantizeLinear":
            given = {name: held[name] for name in node.input if name}
            held |= dict(zip(node.output, ReferenceEvaluator(node, opsets=opsets).run(None, given), strict=True))
    return {(str(x.dtype), form.tobytes()) for x in held.values() for form in (x, x.T)}


def small(x: np.ndarray) -> np.ndarray:
    """Integers of 4 bits, which numpy has no kind for, as bytes."""
    kinds = {"int4": np.int8, "uint4": np.uint8}
    return x.astype(kinds[str(x.dtype)]) if str(x.dtype) in kinds else x


def of_bits(node: onnx.NodeProto, held: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The integers and zero points of a MatMulNBits, by ONNX Runtime's description of its inputs."""
    at = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    sizes = {node.input[1]: at["K"], node.input[3]: -(-at["K"] // at["block_size"])}
    found = {}
    for name, columns in sizes.items():
        found[f"{name}!"] = (
            from_bits(held[name].tobytes(), at["bits"]).reshape(at["N"], -1)[:, :columns].astype(np.uint8)
        )
    return found


def in_litert(path: Path) -> Stored:
    """The scales and constants of a LiteRT file by its interpreter, and with the channels where torch has them."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path))
    interpreter.allocate_tensors()
    found: Stored = set()
    for detail in interpreter.get_tensor_details():
        found.add(("float32", detail["quantization_parameters"]["scales"].tobytes()))
        try:
            x = interpreter.get_tensor(detail["index"])
        except ValueError:  # what is computed has no value before a run
            continue
        forms = [x] if x.ndim != 4 else [x, np.moveaxis(x, -1, 1), np.moveaxis(x, -1, 0)]
        found |= {(str(x.dtype), np.ascontiguousarray(form).tobytes()) for form in forms}
    return found
