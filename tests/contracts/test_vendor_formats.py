"""What every exporter with a reader promises: its files, read back, hold the grids and integers of the simulation, and
the float network in them computes, with the grids put back at the tensors that they name, what the simulation does."""

import functools
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import helper, numpy_helper

import isobit
from isobit.core.artifact import Artifact
from isobit.core.errors import ArtifactError
from isobit.export import EXPORTERS, READERS, Encoding, ReadBack
from isobit.export.float_network import float_network
from isobit.export.octaves import Octaves
from isobit.graph.convert import convert, hash_integers
from vendor import (
    BY_LAYER,
    NOT_GROUPED,
    PROFILES,
    WITHOUT_WEIGHTS,
    Quantized,
    declared_grids,
    declared_key,
    quantized,
    read_key,
    run,
    simulated_weights,
    without_quantizers,
)

NETWORKS = ("residual", "depthwise", "mlp")
HAVE_FLOATS = tuple(name for name in READERS if name not in ("pt2e", "openvino", "tensorrt", "vitis-ai"))
"""Formats that are a float network in ONNX with a file beside it."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("vendor")


@functools.cache
def written(network: str, format: str, folder: Path) -> tuple[Quantized, Artifact, ReadBack]:
    found = quantized(network, format)
    path = folder / f"{network}.{format}" / "net.onnx"
    path.parent.mkdir()
    artifact = EXPORTERS[format]().export(found.model, path, example=found.inputs)
    return found, artifact, READERS[format]().read_back(path)


def test_every_reader_is_an_exporter_with_a_target() -> None:
    assert READERS.keys() == PROFILES.keys() - {"ncnn-int8"}  # that one is run by its engine
    assert READERS.items() <= EXPORTERS.items()


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("format", READERS)
def test_the_weights_read_back_are_those_of_the_simulation(format: str, network: str, folder: Path) -> None:
    """All integers of weights and biases, which a reader finds by the vendor's rounding of the file's floats."""
    found, _, read = written(network, format, folder)
    expected = {} if format in WITHOUT_WEIGHTS else simulated_weights(found.model)
    if format in NOT_GROUPED:
        expected = {name: k for name, k in expected.items() if not name.startswith("depthwise")}
    assert read.integers.keys() == expected.keys()
    for name, integers in expected.items():
        np.testing.assert_array_equal(read.integers[name], integers, err_msg=name)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("format", sorted(WITHOUT_WEIGHTS))
def test_a_note_says_where_a_tool_rounds_weights_otherwise(format: str, network: str, folder: Path) -> None:
    """Such a tool makes the largest of each output channel 127: integers differ where it is another one here."""
    found, artifact, _ = written(network, format, folder)
    weights = [k for name, k in simulated_weights(found.model).items() if name.endswith(".weight")]
    largest = np.concatenate([np.abs(k).reshape(len(k), -1).max(1) for k in weights])
    count = int(((largest != 127) & (largest > 0)).sum())
    notes = [note for note in artifact.notes if "rounds weights by itself" in note]
    assert len(notes) == bool(count)
    assert all(f"{count} of {len(largest)} channels" in note for note in notes)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("format", READERS)
def test_the_grids_read_back_are_those_that_were_declared(format: str, network: str, folder: Path) -> None:
    found, artifact, read = written(network, format, folder)
    declared = {declared_key(grid): grid for grid in declared_grids(found.model)}
    held = {read_key(encoding) for encoding in read.activations.values()}
    assert held and held <= set(declared)
    if format not in BY_LAYER:
        assert len(set(declared) - held) <= len(without_place(artifact))
    for encoding in read.activations.values():
        assert encoding.bits == declared[read_key(encoding)].scheme.bits


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("format", HAVE_FLOATS)
def test_the_names_lead_to_the_right_tensors(format: str, network: str, folder: Path) -> None:
    """Grids put back into the float network give the simulation; without them it is far from it."""
    found, artifact, read = written(network, format, folder)
    left = without_place(artifact)
    model = without_quantizers(found.model, left) if left else convert(found.model)
    expected = model(*found.inputs).detach().numpy()
    inputs = [x.numpy() for x in found.inputs]
    plain = run(onnx.load(artifact.path), inputs)
    restored = run(with_grids(artifact.path, read, by_layer=format in BY_LAYER), inputs)
    error, without = np.abs(restored - expected).mean(), np.abs(plain - expected).mean()
    assert error <= 0.2 * without, (error, without)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("format", ["tensorrt", "vitis-ai"])
def test_signed_quantizers_compute_the_simulation(format: str, network: str, folder: Path) -> None:
    """As float ops on ONNX Runtime; all are of signed bytes without zero points, and no bias has one."""
    found, artifact, _ = written(network, format, folder)
    file = onnx.load(artifact.path)
    onnx.checker.check_model(file, full_check=True)
    held = {t.name: numpy_helper.to_array(t) for t in file.graph.initializer}
    for node in file.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            assert held[node.input[2]].dtype == np.int8
            assert not held[node.input[2]].any()
        elif node.op_type in ("Conv", "Gemm") and len(node.input) > 2:
            assert held[node.input[2]].dtype == np.float32
    inputs, expected = [x.numpy() for x in found.inputs], convert(found.model)(*found.inputs).numpy()
    program = float_network(found.model, found.inputs, what="this test").program
    without = np.abs(run(ir.to_proto(program), inputs) - expected).mean()
    assert np.abs(run(file, inputs) - expected).mean() <= 0.2 * without


def without_place(artifact: Artifact) -> list[str]:
    """The quantized tensors that a file does not state, by its own note."""
    (names,) = [n.partition("no place for the grids of ")[2] for n in artifact.notes if "no place" in n] or [""]
    return names.split(", ") if names else []


def with_grids(path: Path, read: ReadBack, *, by_layer: bool) -> onnx.ModelProto:
    """The network with each tensor that has a grid clipped and rounded to it, by float ops, written without isobit."""
    model = onnx.load(path)
    for entry in model.opset_import:
        entry.version = max(entry.version, 13)
    nodes = list(model.graph.node)
    added = []
    for name, grid in read.activations.items():
        constants, pieces = logarithmic(grid) if isinstance(grid, Octaves) else uniform(grid)
        model.graph.initializer.extend(
            numpy_helper.from_array(np.asarray(v, np.float32), f"{name}!{k}") for k, v in constants.items()
        )
        for op, inputs, output in pieces:
            tensors = [name if tensor == "x" else f"{name}!{tensor}" for tensor in inputs]
            to = {"to": onnx.TensorProto.FLOAT} if op == "Cast" else {}
            added.append(helper.make_node(op, tensors, [f"{name}!{output}"], **to))
        for node in nodes:
            if not by_layer or node.op_type in ("Conv", "Gemm"):
                node.input[:] = [f"{name}!on-grid" if i == name else i for i in node.input]
    del model.graph.node[:]
    model.graph.node.extend(sorted_nodes(nodes + added, model))
    return model


Pieces = tuple[dict[str, np.ndarray | float], list[tuple[str, list[str], str]]]
"""Constants by name, and ops on `x` and those: kind, inputs, output."""


def uniform(grid: Encoding) -> Pieces:
    ends = {"low": grid.lowest * grid.scale, "high": grid.highest * grid.scale}
    return {"scale": grid.scale, **ends}, [
        ("Max", ["x", "low"], "1"),
        ("Min", ["1", "high"], "2"),
        ("Div", ["2", "scale"], "3"),
        ("Round", ["3"], "4"),
        ("Mul", ["4", "scale"], "on-grid"),
    ]


def logarithmic(grid: Octaves) -> Pieces:
    """sign(x) · 2^(round(16 · log2 |x|) / 16) up to the largest, 0 below half of the smallest."""
    top, bottom = grid.parameter, grid.parameter - 127
    constants = {"one": 16 / np.log(2), "top": top, "bottom": bottom, "half": 2.0 ** (bottom / 16 - 1), "tiny": 1e-38}
    return constants, [
        ("Abs", ["x"], "size"),
        ("Max", ["size", "tiny"], "1"),
        ("Log", ["1"], "2"),
        ("Mul", ["2", "one"], "3"),
        ("Round", ["3"], "4"),
        ("Max", ["4", "bottom"], "5"),
        ("Min", ["5", "top"], "6"),
        ("Div", ["6", "one"], "7"),
        ("Exp", ["7"], "8"),
        ("Greater", ["size", "half"], "9"),
        ("Cast", ["9"], "10"),
        ("Mul", ["8", "10"], "11"),
        ("Sign", ["x"], "12"),
        ("Mul", ["11", "12"], "on-grid"),
    ]


def sorted_nodes(nodes: list[onnx.NodeProto], model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Nodes behind those that they read."""
    ready = {v.name for v in (*model.graph.input, *model.graph.initializer)} | {""}
    done: list[onnx.NodeProto] = []
    while nodes:
        now = [n for n in nodes if ready.issuperset(n.input)]
        assert now, "a name in the encodings is not in the network"
        done += now
        ready.update(o for n in now for o in n.output)
        nodes = [n for n in nodes if n not in now]
    return done


@pytest.mark.parametrize("format", HAVE_FLOATS)
def test_the_float_network_is_valid_and_says_what_it_is(format: str, folder: Path) -> None:
    found, artifact, _ = written("residual", format, folder)
    file = onnx.load(artifact.path)
    onnx.checker.check_model(file, full_check=True)
    assert not {n.op_type for n in file.graph.node} & {"QuantizeLinear", "DequantizeLinear"}
    held = {p.key: p.value for p in file.metadata_props}
    assert held["isobit.format"] == artifact.format == format
    assert held["isobit.integers_sha256"] == artifact.integers_sha256 == hash_integers(convert(found.model))
    assert [p.parent for p in artifact.beside] == [artifact.path.parent]
    assert all(":" not in o for n in file.graph.node for o in (n.name, *n.output))


@pytest.mark.parametrize("format", READERS)
def test_foreign_changed_and_missing_files(format: str, folder: Path, tmp_path: Path) -> None:
    """A file beside that is another export's, or is not there, is an error; so is another format's file."""
    found, artifact, _ = written("residual", format, folder)
    other = tmp_path / "other.onnx"
    other.write_bytes(b"nothing of the kind")
    with pytest.raises(ArtifactError):
        READERS[format]().read_back(other)
    isobit.export(found.model, other)
    with pytest.raises(ArtifactError):
        READERS[format]().read_back(other)
    for place in artifact.beside:
        whole = place.read_bytes()
        place.write_bytes(whole[:-1])
        try:
            with pytest.raises(ArtifactError):
                READERS[format]().read_back(artifact.path)
            place.unlink()
            with pytest.raises(ArtifactError):
                READERS[format]().read_back(artifact.path)
        finally:
            place.write_bytes(whole)


@pytest.mark.parametrize("format", HAVE_FLOATS)
def test_verify_says_that_it_is_no_file_for_engines(format: str, folder: Path) -> None:
    found, artifact, _ = written("residual", format, folder)
    with pytest.raises(ArtifactError, match=f"has the format {format}"):
        isobit.verify(artifact.path, found.model, [torch.cat(found.inputs)], engine="onnxruntime")
