"""ncnn's own files: what they hold is what the ONNX file of the same model holds, and damaged ones are refused."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import isobit
from isobit.core.arithmetic import NCNN
from isobit.core.errors import ArtifactError, UnsupportedError
from isobit.core.ncnn_file import read_ncnn
from isobit.integer import Reference
from isobit.integer.files import format_of, load_qdq, metadata_of
from isobit.integer.ncnn import reciprocal


class Net(nn.Module):
    """All that the format knows: both convolutions, padding of channels, strided slices, sums, pools, a concat."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, stride=2)
        self.point = nn.Conv2d(8, 12, 1, bias=False)
        self.norm = nn.BatchNorm2d(12)
        self.wide = nn.Conv2d(12, 12, (3, 5), padding=(2, 1), dilation=(2, 1))
        self.last = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        y = F.relu6(self.norm(self.point(F.relu6(self.depthwise(x)))))
        x = F.relu(F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)) + y)
        x = F.max_pool2d(x, 2)
        x = torch.cat([self.wide(x), F.avg_pool2d(x, (1, 3), stride=1)[:, :, :, :]], 1)
        return self.last(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of net.onnx and net.param."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("ncnn")
    model = isobit.quantize(Net().eval(), [torch.randn(8, 3, 16, 16)], target="ncnn")
    isobit.export(model, folder / "net.onnx", format="onnx")
    artifact = isobit.export(model, folder / "net.param")
    assert artifact.format == "ncnn-int8"
    assert {p.name for p in artifact.beside} == {"net.bin", "net.json"}
    return folder


def constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}


def test_the_files_hold_the_weights_and_factors_of_the_onnx_file(files: Path) -> None:
    layers, metadata = read_ncnn(files / "net.param")
    held = constants(onnx.load(files / "net.onnx"))
    products = {layer.name: layer for layer in layers if layer.weights}
    assert set(products) == {"first", "depthwise", "point", "wide", "last"}
    for name, layer in products.items():
        weight, bias, factors, _ = layer.weights
        np.testing.assert_array_equal(weight, held[f"deployed_{name}.integer.q"].reshape(-1))
        np.testing.assert_array_equal(np.float32(1) / held[f"deployed_{name}.integer.scale"], factors)
        scale = held[f"deployed_{name}.integer.bias_scale"]
        np.testing.assert_array_equal(bias, held[f"deployed_{name}.integer.bias_q"].astype(np.float32) * scale)
    assert metadata["isobit.target"] == "ncnn"


def test_read_back_it_computes_what_the_onnx_file_does(files: Path) -> None:
    x = np.random.default_rng(0).standard_normal((16, 3, 16, 16)).astype(np.float32)
    expected = Reference(files / "net.onnx", NCNN).run([x])
    file = load_qdq(files / "net.param")
    assert format_of(files / "net.param") == "ncnn-int8"
    assert metadata_of(file)["isobit.target"] == "ncnn"
    found = Reference(file, NCNN).run([x])
    np.testing.assert_array_equal(found.outputs[0], expected.outputs[0])
    assert len(found.integers) == len(expected.integers)
    assert "depthwise" in found.float_ops  # whose scale ncnn approximates


def test_a_scale_for_each_factor() -> None:
    factors = np.random.default_rng(0).uniform(0.01, 1000, 2000).astype(np.float32)
    scales = [np.float32(1) / f for f in factors]
    for scale in scales:  # factors of scales, as files have them
        factor = np.float32(1) / scale
        assert np.float32(1) / reciprocal(factor) == factor


@pytest.mark.parametrize(
    ("suffix", "damage", "text"),
    [
        (".param", lambda data: data[:40], "not an ncnn file, or it is truncated"),
        (".param", lambda data: b"hello\n" + data, "not an ncnn file"),
        (".param", lambda data: data.replace(b"0=8", b"0=9"), "weights of the kind 0x"),
        (".param", lambda data: data.replace(b"6=216", b"6=-16"), "truncated|belongs to another file"),
        (".param", lambda data: data.replace(b"3=2", b"3=3"), "is not the one that was written"),
        (".param", lambda data: b"\xff\xfe" + data, "is not an ncnn file"),
        (".bin", lambda data: data[:-4], "truncated, or belongs to another file"),
        (".bin", lambda data: data + b"1234", "belongs to another file"),
        (".bin", lambda data: b"abcd" + data[4:], "weights of the kind 0x64636261"),
        (".json", lambda data: data[:-9], "damaged: export the network again"),
    ],
)
def test_damaged_files(files: Path, tmp_path: Path, suffix: str, damage: object, text: str) -> None:
    for path in files.glob("net.*"):
        content = path.read_bytes()
        (tmp_path / path.name).write_bytes(damage(content) if path.suffix == suffix else content)  # type: ignore[operator]
    with pytest.raises(ArtifactError, match=text):
        load_qdq(tmp_path / "net.param")


def test_missing_files(files: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="there is no file"):
        load_qdq(tmp_path / "net.param")
    (tmp_path / "net.param").write_bytes((files / "net.param").read_bytes())
    with pytest.raises(ArtifactError, match=r"there is no file .*net\.bin"):
        load_qdq(tmp_path / "net.param")


def test_what_has_no_form_names_the_layer(tmp_path: Path) -> None:
    model = isobit.quantize(Net().eval(), [torch.randn(8, 3, 16, 16)], target="onnxruntime-x86")
    with pytest.raises(UnsupportedError, match=r"ncnn: .*signed bytes with one scale"):
        isobit.export(model, tmp_path / "net.param")
    squashed = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Softplus(), nn.Conv2d(4, 4, 3))
    model = isobit.quantize(squashed, [torch.randn(2, 3, 8, 8)], target="ncnn")
    with pytest.raises(UnsupportedError, match=r"ncnn: .* \(Softplus\): it has no form here"):
        isobit.export(model, tmp_path / "net.param")
    assert not list(tmp_path.iterdir())


def test_json_is_not_needed_for_files_of_others(files: Path, tmp_path: Path) -> None:
    for suffix in (".param", ".bin"):
        (tmp_path / f"net{suffix}").write_bytes((files / f"net{suffix}").read_bytes())
    assert metadata_of(load_qdq(tmp_path / "net.param")) == {}
    assert "isobit.integers_sha256" in json.loads((files / "net.json").read_text())
