"""PT2E: PyTorch's own loader runs the file as the simulation; what has no form is refused with its name."""

import io
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import isobit
from integer.graphs import QdqGraph
from isobit.core.artifact import Artifact
from isobit.core.errors import ArtifactError, UnsupportedError
from isobit.core.pt2_file import read_pt2
from isobit.core.pt2_program import module_of
from isobit.export.pt2e import pt2e_archive, translate
from isobit.graph.convert import convert
from isobit.integer import quantized_tensors
from isobit.integer.files import load_qdq, places_of
from pt2 import SAMPLES, records
from vendor import quantized
from zoo import small_networks

NETWORKS = ("residual", "depthwise", "concat", "mlp", "convolution_1d", "vit", "bert")


def exported(network: str, path: Path) -> tuple[Artifact, Tensor, tuple[Tensor, ...]]:
    """The file, what the simulation gives for the inputs, and these."""
    found = quantized(network, "pt2e")
    artifact = pt2e_archive().export(found.model, path, example=found.inputs)
    return artifact, convert(found.model)(*found.inputs), found.inputs


@pytest.mark.parametrize("network", NETWORKS)
def test_pytorch_runs_it_as_the_simulation(network: str, tmp_path: Path) -> None:
    """Quantize ops of PT2E multiply by 1 / scale where the simulation divides: a step in a million values."""
    artifact, expected, inputs = exported(network, tmp_path / "net.pt2")
    program = torch.export.load(artifact.path)
    y = program.module()(*inputs)
    atol = 1e-6 if network == "convolution_1d" else 0  # its last layer is float, and its sums depend on the batch
    torch.testing.assert_close(y, expected, rtol=0, atol=atol)
    more = [torch.cat([x, x, x[:1]]) for x in inputs]
    torch.testing.assert_close(program.module()(*more)[: len(y)], y, rtol=0, atol=atol)
    torch.testing.assert_close(program.module()(*(x[:1] for x in inputs)), y[:1], rtol=0, atol=atol)


def test_the_form_is_that_of_pt2e(tmp_path: Path) -> None:
    """Int8 weights behind dequantize_per_channel, float biases, a dequantize op for each reader."""
    artifact, _, _ = exported("residual", tmp_path / "net.pt2")
    graph = torch.export.load(artifact.path).graph
    kinds = Counter(str(n.target).removesuffix(".default") for n in graph.nodes if n.op == "call_function")
    quantize, dequantize = (f"quantized_decomposed.{word}_per_tensor" for word in ("quantize", "dequantize"))
    assert (kinds["aten.conv2d"], kinds["aten.linear"], kinds["aten.adaptive_avg_pool2d"]) == (4, 1, 1)
    assert kinds["quantized_decomposed.dequantize_per_channel"] == 5
    assert (kinds[quantize], kinds[dequantize]) == (10, 12)
    state = torch.export.load(artifact.path).state_dict
    assert {state[f"conv1.{name}"].dtype for name in ("weight",)} == {torch.int8}
    assert state["conv1.bias"].dtype == state["conv1.weight_scale"].dtype == torch.float32
    for node in graph.nodes:
        if str(node.target) == f"{dequantize}.default":
            assert len(node.users) == 1
            assert node.args[-1] == torch.int8
        if str(node.target) == "aten.conv2d.default":
            x, w = node.args[:2]
            assert str(x.target) == f"{dequantize}.default"
            assert str(w.target) == "quantized_decomposed.dequantize_per_channel.default"
    assert {"conv1", "relu1_quantize", "shortcut", "linear"} <= {n.name for n in graph.nodes}


def test_nothing_of_this_machine_and_nothing_pickled(tmp_path: Path) -> None:
    artifact, _, _ = exported("residual", tmp_path / "net.pt2")
    found = records(artifact.path)
    assert found[SAMPLES] == b""
    for place in (str(Path.home()), str(Path(isobit.__file__).parents[2]), ".py"):
        assert place.encode() not in artifact.path.read_bytes()
    assert read_pt2(artifact.path).metadata.items() >= artifact.metadata.items()


def test_unsigned_bytes_where_the_target_has_them(tmp_path: Path) -> None:
    net, inputs = small_networks()["residual"]
    model = isobit.quantize(net, [(inputs,)], target="onnxruntime-x86")
    artifact = isobit.export(model, tmp_path / "net.pt2")
    assert artifact.format == "pt2e"
    kinds = {
        c.arguments["dtype"] for c in read_pt2(artifact.path).calls if c.target.endswith("quantize_per_tensor.default")
    }
    assert kinds == {torch.uint8}
    assert all(place.lower == 0 for place in places_of(load_qdq(artifact.path)))


def test_places_say_how_much_lower_the_integers_lie(tmp_path: Path) -> None:
    """The targets of signed bytes hold some activations as unsigned ones in ONNX, and all as signed ones here."""
    found = quantized("residual", "pt2e")
    isobit.export(found.model, tmp_path / "net.onnx", format="onnx")
    artifact = pt2e_archive().export(found.model, tmp_path / "net.pt2", example=found.inputs)
    source = onnx.load(tmp_path / "net.onnx")
    constants = {t.name: onnx.numpy_helper.to_array(t).dtype for t in source.graph.initializer}
    kinds = [constants[n.input[2]] for n in source.graph.node if n.op_type == "QuantizeLinear"]
    places = places_of(load_qdq(artifact.path))
    assert [place.lower for place in places] == [128 if kind == np.uint8 else 0 for kind in kinds]
    assert [place.name for place in places] == list(quantized_tensors(load_qdq(artifact.path)))


def test_four_bits(tmp_path: Path) -> None:
    """Weights and activations of four bits keep their levels: the limits of the quantize ops."""
    net, inputs = small_networks()["residual"]
    model = isobit.quantize(net, [(inputs,)], target="onnxruntime-x86", bits=4)
    artifact = isobit.export(model, tmp_path / "net.pt2", format="pt2e")
    y = torch.export.load(artifact.path).module()(*inputs)
    assert torch.equal(y, convert(model)(*inputs))
    read = pt2e_archive().read_back(artifact.path)
    assert {e.bits for e in read.activations.values()} == {4, 8}


def translated(g: QdqGraph, path: Path) -> nn.Module:
    data = translate(onnx.load(g.save(path)), {})
    found: nn.Module = torch.export.load(io.BytesIO(data)).module()
    path.with_suffix(".pt2").write_bytes(data)
    assert module_of(read_pt2(path.with_suffix(".pt2"))) is not None
    return found


def test_padding_that_differs_and_ceil_mode_are_written_out(tmp_path: Path) -> None:
    """Of the integers: so the convolution and the pooling still read quantized tensors."""
    g = QdqGraph(0)
    x = g.qdq(g.input("batch", 3, 8, 8), scale=0.02, zero_point=100)
    w = g.constant("w", g.rng.standard_normal((4, 3, 3, 3)).astype(np.float32))
    y = g.qdq(g.node("Conv", [x, w], pads=[0, 0, 1, 1], strides=[2, 2]), scale=0.05, zero_point=120)
    g.output(
        g.qdq(g.node("MaxPool", [y], kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1), scale=0.05, zero_point=120)
    )
    module = translated(g, tmp_path / "net.onnx")
    x_ = np.random.default_rng(1).standard_normal((2, 3, 8, 8)).astype(np.float32)
    (expected,) = onnx.reference.ReferenceEvaluator(str(tmp_path / "net.onnx")).run(None, {"x": x_})
    np.testing.assert_allclose(module(torch.from_numpy(x_)).numpy(), expected, atol=0.0501)
    assert (module(torch.from_numpy(x_)).numpy() == expected).mean() > 0.99


def refused(g: QdqGraph, path: Path) -> str:
    with pytest.raises(UnsupportedError) as error:
        translate(onnx.load(g.save(path)), {})
    return str(error.value)


def test_what_has_no_form_is_named(tmp_path: Path) -> None:
    g = QdqGraph(0)
    g.output(g.node("Selu", [g.input("batch", 3)]))
    assert "(Selu) has no form" in refused(g, tmp_path / "a.onnx")
    g = QdqGraph(0)
    index = g.constant("i", np.array([0, 2], np.int64))
    g.output(g.node("Gather", [g.input("batch", 3), index], axis=1))
    assert "gathers several constant indices" in refused(g, tmp_path / "b.onnx")
    g = QdqGraph(0)
    pads = g.constant("pads", np.array([0, 1, 0, 1], np.int64))
    g.output(g.node("Pad", [g.input("batch", 3), pads], mode="reflect"))
    assert "pads in the mode reflect" in refused(g, tmp_path / "c.onnx")


@pytest.mark.parametrize("target", ["onnxruntime-dynamic", "onnxruntime-weights"])
def test_dynamic_ranges_and_groups_of_weights(target: str, tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8))
    model = isobit.quantize(net, [torch.randn(8, 64)], target=target)
    with pytest.raises(UnsupportedError, match="PT2E: "):
        isobit.export(model, tmp_path / "net.pt2", format="pt2e")
    assert not list(tmp_path.iterdir())


def test_files_of_others_are_not_read_back(tmp_path: Path) -> None:
    program = torch.export.export(nn.ReLU(), (torch.randn(2, 3),))
    torch.export.save(program, tmp_path / "net.pt2")
    with pytest.raises(ArtifactError, match="was not written by isobit"):
        pt2e_archive().read_back(tmp_path / "net.pt2")
