"""Encodings against closed forms, and the vendors' numbers by hand."""

import json
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import nn

import isobit
from isobit.core.errors import UnknownNameError, UnsupportedError
from isobit.export import EXPORTERS, READERS
from isobit.export.encodings import from_offset, symmetric_bytes
from isobit.export.float_network import float_network
from isobit.export.opset import at_opset
from isobit.export.tensorrt_text import tensorrt_cache
from isobit.targets import TARGETS
from vendor import PROFILES, known_target, quantized, run, simulated_weights
from zoo import small_networks


def test_integers_are_rounded_half_to_even_and_clipped() -> None:
    encoding = from_offset(bits=8, scale=0.5, offset=-3, symmetric=False)
    x = np.array([-9.0, -1.5, 0.25, 0.75, 126.0, 1000.0], np.float32)
    np.testing.assert_array_equal(encoding.integers(x), [-3, -3, 0, 2, 252, 252])
    narrow = symmetric_bytes(np.array([1.0, 2.0]), lowest=-127, axis=1)
    np.testing.assert_array_equal(narrow.integers(np.full((1, 2), -1000.0)), [[-127, -127]])
    assert narrow.narrow
    np.testing.assert_array_equal(narrow.offset, [-128, -128])


def test_aimet_states_scale_offset_and_ends(tmp_path: Path) -> None:
    """x = (q + offset) · scale for q in 0..255: the ends are those of q = 0 and 255."""
    found = quantized("residual", "aimet")
    (beside,) = EXPORTERS["aimet"]().export(found.model, tmp_path / "net.onnx", example=found.inputs).beside
    held = json.loads(beside.read_text())
    assert held["version"] == "0.6.1"
    names = {o for n in onnx.load(tmp_path / "net.onnx").graph.node for o in n.output} | {"x"}
    assert held["activation_encodings"].keys() <= names
    for (entry,) in held["activation_encodings"].values():
        assert entry["min"] == pytest.approx(entry["offset"] * entry["scale"])
        assert entry["max"] == pytest.approx((255 + entry["offset"]) * entry["scale"])
        assert (entry["bitwidth"], entry["dtype"], entry["is_symmetric"]) == (8, "int", "False")
    weight, bias = (held["param_encodings"][f"conv2.{key}"][0] for key in ("weight", "bias"))
    x = held["activation_encodings"]["relu1"][0]
    assert bias["scale"] == pytest.approx(weight["scale"] * x["scale"])
    assert (bias["bitwidth"], bias["offset"]) == (32, -(2**31))


def test_tensorrt_cache_is_the_bits_of_the_scale(tmp_path: Path) -> None:
    """The eight digits are the float32's, a known cache has `3caa54fc` for 0.02079; the JSON holds 127 scales."""
    assert struct.unpack(">f", bytes.fromhex("3caa54fc"))[0] == pytest.approx(0.0207924, rel=1e-5)
    found = quantized("residual", "tensorrt-cache")
    (cache,) = EXPORTERS["tensorrt-cache"]().export(found.model, tmp_path / "a.onnx", example=found.inputs).beside
    (ranges,) = EXPORTERS["tensorrt-ranges"]().export(found.model, tmp_path / "b.onnx", example=found.inputs).beside
    header, *lines = cache.read_text().splitlines()
    assert header == "TRT-8401-EntropyCalibration2"
    held = json.loads(ranges.read_text())["tensorrt"]["blob_range"]
    assert len(lines) == len(held)
    for line in lines:
        name, bits = line.split(": ")
        assert held[name] == pytest.approx(127 * struct.unpack(">f", bytes.fromhex(bits))[0])
    newer = tensorrt_cache(version=100300).export(found.model, tmp_path / "c.onnx", example=found.inputs).beside[0]
    assert newer.read_text().splitlines() == ["TRT-100300-EntropyCalibration2", *lines]


def test_ncnn_lists_weights_before_inputs_by_layer(tmp_path: Path) -> None:
    found = quantized("residual", "ncnn")
    (table,) = EXPORTERS["ncnn"]().export(found.model, tmp_path / "net.onnx", example=found.inputs).beside
    keys = [line.split()[0] for line in table.read_text().splitlines()]
    layers = ["conv1", "conv2", "conv3", "shortcut", "linear"]
    assert keys == [*(f"{name}_param_0" for name in layers), *layers]
    sizes = [len(line.split()) - 1 for line in table.read_text().splitlines()]
    assert sizes == [8, 8, 16, 16, 5, 1, 1, 1, 1, 1]


@pytest.mark.parametrize(("format", "opset"), [("aimet", 17), ("ncnn", 13), ("ascend", 11), ("tengine", 11)])
def test_the_opset_is_one_that_the_tool_reads(format: str, opset: int, tmp_path: Path) -> None:
    """Of a convolutional network; GELU has no op before opset 20, so that a note says which one the file has."""
    for network, wanted in (("residual", opset), ("depthwise", opset), ("mlp", 21)):
        found = quantized(network, format)
        artifact = EXPORTERS[format]().export(found.model, tmp_path / f"{network}.onnx", example=found.inputs)
        assert [o.version for o in onnx.load(artifact.path).opset_import] == [wanted]
        assert ("the file has ONNX opset 21" in " ".join(artifact.notes)) == (network == "mlp")


@pytest.mark.parametrize("opset", [17, 13, 11])
@pytest.mark.parametrize("network", ["residual", "option_a", "depthwise", "concat", "functional"])
def test_an_older_opset_computes_the_same(network: str, opset: int) -> None:
    """ONNX Runtime, without optimizations: to the bit."""
    found = quantized(network, "aimet")
    program = float_network(found.model, found.inputs, what="this test").program
    lowered, notes = at_opset(program, opset)
    assert not notes
    assert lowered.opset_imports == {"": opset}
    inputs = [x.numpy() for x in found.inputs]
    np.testing.assert_array_equal(run(ir.to_proto(lowered), inputs), run(ir.to_proto(program), inputs))


def test_encodings_of_sixteen_bits(tmp_path: Path) -> None:
    """Activations of 65,536 levels beside weights of bytes, as SNPE and QNN take them; all integers come back."""
    net, inputs = small_networks()["residual"]
    wide = replace(TARGETS["snpe"], activation=replace(TARGETS["snpe"].activation, bits=16), widths=(8, 16))
    with known_target(wide) as target:
        model = isobit.quantize(net, [(inputs,)], target=target)
    artifact = isobit.export(model, tmp_path / "net.onnx", format="aimet")
    read, expected = READERS["aimet"]().read_back(artifact.path), simulated_weights(model)
    assert {(e.bits, int(e.highest) - int(e.lowest)) for e in read.activations.values()} == {(16, 65535)}
    assert read.integers.keys() == expected.keys()
    for name, integers in expected.items():
        np.testing.assert_array_equal(read.integers[name], integers, err_msg=name)


@pytest.mark.parametrize(
    ("format", "target", "text"),
    [
        ("tensorrt", "snpe", "signed bytes from -128 to 127 without a zero point, and the activation"),
        ("ncnn", "tensorrt", "signed bytes from -127 to 127"),
        ("vitis-ai", "tensorrt", "one power of two as the scale"),
        ("aimet", "ascend", "is read in float too, as the target ascend places it"),
        ("mnn", "snpe", "weights without zero points"),
        ("aimet", "onnxruntime-dynamic", "no dynamic ranges"),
        ("aimet", "onnxruntime-weights", "no scales for groups of weights"),
    ],
)
def test_what_a_format_cannot_hold_is_refused(format: str, target: str, text: str, tmp_path: Path) -> None:
    net, inputs = small_networks()["residual"]
    if target.startswith("onnxruntime"):  # they quantize linear layers, in groups of 32
        net, inputs = nn.Sequential(nn.Linear(32, 32)), (torch.linspace(-1, 1, 64).reshape(2, 32),)
    model = isobit.quantize(net, [(inputs,)], target=target)
    with pytest.raises(UnsupportedError, match=text):
        isobit.export(model, tmp_path / "net.onnx", format=format)
    assert not list(tmp_path.iterdir())


def test_formats_of_targets_are_exporters(tmp_path: Path) -> None:
    for profile in TARGETS.values():
        assert set(profile.formats) <= EXPORTERS.keys()
    found = quantized("residual", "tensorrt")
    with pytest.raises(UnknownNameError, match="did you mean 'tensorrt'"):
        isobit.export(found.model, tmp_path / "net.onnx", format="tensort")


@pytest.mark.parametrize("format", ["tensorrt", "aimet", "aimet-1.0", "openvino", "ascend", "mnn", "ncnn"])
def test_channels_of_transposed_and_grouped_convolutions(format: str, tmp_path: Path) -> None:
    """A transposed convolution has its output channels on the second axis, which most formats leave unsaid."""
    torch.manual_seed(0)
    up = nn.ConvTranspose2d(6, 4, 2, stride=2)
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), up, nn.ReLU(), nn.Conv2d(4, 8, 3, groups=2)).eval()
    inputs = torch.randn(4, 3, 8, 8)
    profile = TARGETS["tensorrt"] if format.startswith("aimet") else PROFILES[format]
    with known_target(profile) as target:
        model = isobit.quantize(net, [inputs], target=target)
        if format == "ncnn":
            with pytest.raises(UnsupportedError, match="4: ncnn has one scale for each group"):
                isobit.export(model, tmp_path / "net.onnx", format=format)
            return
        artifact = isobit.export(model, tmp_path / "net.onnx", format=format)
    read, expected = READERS[format]().read_back(artifact.path), simulated_weights(model)
    assert read.integers.keys() == expected.keys()
    for name, integers in expected.items():
        np.testing.assert_array_equal(read.integers[name], integers, err_msg=name)
