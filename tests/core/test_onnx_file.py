"""The reader of ONNX files: whole files come out unchanged, all others are refused before anything computes."""

import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from integer.graphs import QdqGraph, small_network
from isobit.core import onnx_file
from isobit.core.errors import ArtifactError, IsobitError, UnsupportedError
from isobit.core.onnx_file import graph_inputs, read_onnx
from isobit.core.protobuf_wire import check_wire
from mutation_table import MUTATIONS
from mutations import OUTSIDE, Mutation, write

WHOLE = {
    "whole",
    "itself",
    "long value",
    "tiny scale",
    "large scale",
    "another zero point",
    "trees",
    "hash",
    "key twice",
}
"""Mutations after which a file is still one: what it computes is for the verdict to say."""
KINDS = (
    "sizes of tensors",
    "external data",
    "memory and time",
    "quantizers",
    "texts",
    "inputs and outputs",
    "versions",
)
HOSTILE = [m for m in MUTATIONS if m.kind in KINDS and m.name not in WHOLE]


@pytest.fixture
def network(tmp_path: Path) -> Path:
    return small_network().save(tmp_path / "network.onnx")


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    (tmp_path / OUTSIDE).mkdir()
    (tmp_path / OUTSIDE / "secret.bin").write_bytes(bytes(1 << 16))
    return tmp_path


def refusal(path: Path) -> str:
    with pytest.raises((ArtifactError, UnsupportedError)) as caught:
        read_onnx(path)
    return str(caught.value)


def test_a_whole_file_is_read_as_onnx_reads_it(network: Path) -> None:
    assert read_onnx(network).SerializeToString() == onnx.load(network).SerializeToString()


def test_external_data_is_read_as_onnx_reads_it(network: Path, tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    onnx.save(
        onnx.load(network), tmp_path / "external.onnx", save_as_external_data=True, size_threshold=0,
        location="weights.bin",
    )  # fmt: skip
    constants = {t.name: numpy_helper.to_array(t) for t in read_onnx(tmp_path / "external.onnx").graph.initializer}
    assert len(constants) > 10
    for t in onnx.load(network).graph.initializer:
        np.testing.assert_array_equal(constants[t.name], numpy_helper.to_array(t))


def test_initializers_among_the_inputs_are_not_given_by_a_caller(network: Path) -> None:
    """Files of IR version 3 list every initializer among the inputs; ONNX Runtime asks for the others."""
    old = onnx.load(network)
    old.graph.input.extend(helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in old.graph.initializer)
    session = onnxruntime.InferenceSession(old.SerializeToString(), providers=["CPUExecutionProvider"])
    assert len(old.graph.input) > 10
    assert [value.name for value in graph_inputs(old)] == [value.name for value in session.get_inputs()] == ["x"]


def test_a_link_inside_the_folder_is_followed(network: Path, tmp_path: Path) -> None:
    onnx.save(
        onnx.load(network),
        tmp_path / "external.onnx",
        save_as_external_data=True,
        size_threshold=0,
        location="real.bin",
    )
    (tmp_path / "store").mkdir()
    (tmp_path / "real.bin").rename(tmp_path / "store" / "blob")
    (tmp_path / "real.bin").symlink_to(Path("store") / "blob")
    assert read_onnx(tmp_path / "external.onnx").graph.node


@pytest.mark.parametrize("mutation", HOSTILE, ids=lambda m: f"{m.kind}: {m.name}")
def test_hostile_files_are_refused(mutation: Mutation, network: Path, outside: Path) -> None:
    path = write(mutation, network.read_bytes(), 1, outside / "case")
    text = refusal(path)
    assert str(path) in text
    assert "\n" not in text and len(text) < 1000


@pytest.mark.parametrize("location", ["{outside}/secret.bin", "../outside/secret.bin", "linked/secret.bin", "link.bin"])
def test_nothing_outside_is_opened(
    location: str, network: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    whole = os.open

    def watched(path: str | Path, flags: int, *rest: int) -> int:
        opened.append(os.path.realpath(path))
        return whole(path, flags, *rest)

    monkeypatch.setattr(onnx_file.os, "open", watched)
    mutation = next(m for m in MUTATIONS if m.name == "absolute")
    path = write(mutation, network.read_bytes(), 1, outside / "case")
    model = onnx.load(path, load_external_data=False)
    (external,) = [t for t in model.graph.initializer if t.external_data]
    external.external_data[0].value = location.format(outside=outside / OUTSIDE)
    onnx.save(model, path)
    assert "own folder" in refusal(path) or "leads out of" in refusal(path)
    assert opened == []


def test_the_data_of_an_attribute_is_external_too(network: Path, outside: Path) -> None:
    model = onnx.load(network)
    t = onnx.TensorProto(name="t", data_type=1, dims=[4], data_location=onnx.TensorProto.EXTERNAL)
    t.external_data.add(key="location", value="/etc/hostname")
    model.graph.node.insert(0, helper.make_node("Constant", [], ["spare"], value=t))
    onnx.save(model, outside / "constant.onnx")
    assert "'/etc/hostname'" in refusal(outside / "constant.onnx")


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    g = QdqGraph(0)
    g.output(g.qdq(g.conv(g.qdq(g.input("batch", 3, 8, 8)), 3, 4)))
    whole = g.save(tmp_path / "whole.onnx").read_bytes()
    for length in range(0, len(whole), 7):
        (tmp_path / "part.onnx").write_bytes(whole[:length])
        refusal(tmp_path / "part.onnx")


def test_random_bytes_never_give_another_error(network: Path, tmp_path: Path) -> None:
    """One byte of the ops changed: refused, or read."""
    rng = np.random.default_rng(0)
    content = bytearray(network.read_bytes())
    read = 0
    for _ in range(150):
        changed = bytearray(content)
        changed[int(rng.integers(len(content)))] = int(rng.integers(256))
        (tmp_path / "changed.onnx").write_bytes(changed)
        try:
            read += bool(read_onnx(tmp_path / "changed.onnx").graph.node)
        except IsobitError as error:
            assert "changed.onnx" in str(error)
    assert 0 < read < 150


def test_functions_are_inlined(tmp_path: Path) -> None:
    value, opset = helper.make_tensor_value_info, [helper.make_opsetid("", 21), helper.make_opsetid("mine", 1)]
    twice = helper.make_function("mine", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], opset)
    calls = [helper.make_node("Twice", [a], [b], domain="mine") for a, b in (("a", "b"), ("b", "c"))]
    four = helper.make_function("mine", "Four", ["a"], ["c"], calls, opset)
    graph = helper.make_graph(
        [helper.make_node("Four", ["x"], ["y"], domain="mine")], "g", [value("x", 1, [3])], [value("y", 1, [3])]
    )
    onnx.save(
        helper.make_model(graph, opset_imports=opset, functions=[twice, four], ir_version=10), tmp_path / "f.onnx"
    )
    model = read_onnx(tmp_path / "f.onnx")
    assert [n.op_type for n in model.graph.node] == ["Add", "Add"]
    x = np.float32([1, 2, 3])
    np.testing.assert_array_equal(ReferenceEvaluator(model).run(None, {"x": x})[0], 4 * x)


@pytest.mark.parametrize(
    ("attribute", "value", "says"),
    [
        ("kernel_shape", [2**31, 3], "kernel_shape 2147483648"),
        ("strides", [-1, -1], "strides -1"),
        ("dilations", [0, 1], "dilations 0"),
        ("group", 0, "group 0"),
        ("pads", [1, 1], "2 pads for a window of 2 dimensions"),
        ("pads", [-1, 0, 0, 0], "pads -1"),
    ],
)
def test_absurd_attributes_are_named_with_their_op(attribute: str, value: object, says: str, network: Path) -> None:
    model = onnx.load(network)
    conv = next(n for n in model.graph.node if n.op_type == "Conv")
    kept = [a for a in conv.attribute if a.name != attribute]
    del conv.attribute[:]
    conv.attribute.extend([*kept, helper.make_attribute(attribute, value)])
    onnx.save(model, network)
    assert f"{conv.name} (Conv) has {says}" in refusal(network)


def test_a_tensor_too_large_is_named_with_its_op_and_size(network: Path) -> None:
    """Sizes by the closed form of a padded pool: 16 + 2 · 60,000 - 60,001 + 1 squared, times 3 channels, 4 bytes."""
    model = onnx.load(network)
    x = model.graph.input[0].name
    model.graph.node.insert(
        0, helper.make_node("MaxPool", [x], ["wide"], name="wide", kernel_shape=[60_001] * 2, pads=[60_000] * 4)
    )
    onnx.save(model, network)
    gib = round(3 * 4 * 60_016**2 / 2**30)
    assert f"wide (MaxPool) makes a tensor of 1 × 3 × 60016 × 60016: {gib} GiB" in refusal(network)


def test_tensors_that_wait_for_each_other_are_counted_together(network: Path) -> None:
    """Each is 3 GiB, below the limit; all wait for the Sum. The 6th is the first beyond 16 GiB."""
    model = onnx.load(network)
    model.graph.initializer.append(numpy_helper.from_array(np.array([3, 2**14, 2**14]), "shape"))
    names = [f"large_{i}" for i in range(8)]
    for name in names:
        model.graph.node.append(helper.make_node("ConstantOfShape", ["shape"], [name], name=name))
    model.graph.node.append(helper.make_node("Sum", names, ["sum"]))
    onnx.save(model, network)
    assert "at large_5 (ConstantOfShape) 18 GiB of tensors wait" in refusal(network)


def test_work_without_end_is_refused_though_its_tensors_are_small(network: Path) -> None:
    """Pooling 1,024² pixels with windows of 40,000² = 1.6e9 each: 5e15 comparisons."""
    g = QdqGraph(0)
    x = g.qdq(g.input("batch", 3, 1024, 1024))
    g.output(g.qdq(g.node("AveragePool", [x], kernel_shape=[40_001] * 2, pads=[20_000] * 4, count_include_pad=1)))
    onnx.save(g.model(), network)
    assert "(AveragePool) needs 5e+15 products" in refusal(network)


def test_a_pipe_or_a_device_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.onnx")
    for path in (tmp_path / "pipe.onnx", Path("/dev/zero"), tmp_path):
        assert "is no file that holds a network" in refusal(path)


def test_fields_of_two_bytes_are_counted_before_objects_are_made_of_them() -> None:
    with pytest.raises(ArtifactError, match="more than 1,000,000 fields"):
        check_wire(b"\x72\x00" * 1_000_001, onnx.ModelProto.DESCRIPTOR)
