"""A part as a LiteRT file: integers in, integers out, channels last, and the same values as between its quantizers."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import isobit
from isobit.analysis.alone import drawn
from isobit.analysis.onnx_layers import FLOAT_SIDE, OnnxLayers, Part
from isobit.core.litert_file import serialized
from isobit.engines import LiteRt
from isobit.export.litert import translate
from isobit.export.litert_part import litert_part
from isobit.recipes.latency_table import float_file

pytestmark = pytest.mark.skipif(bool(LiteRt().missing()), reason=LiteRt().missing())

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(144, 4))


@pytest.fixture(scope="module")
def layers(tmp_path_factory: pytest.TempPathFactory) -> OnnxLayers:
    model = isobit.quantize(net().eval(), [X], target="litert", reconstruction="none")
    path = isobit.export(model, tmp_path_factory.mktemp("file") / "net.onnx").path
    return OnnxLayers(onnx.load(path), batch=2)


def part_of(layers: OnnxLayers, op: str) -> Part:
    found = layers.part(next(g for g in layers.groups() if op in g), quantizers=True)
    assert found is not None
    return found


def run(data: bytes, inputs: list[np.ndarray], folder: Path) -> np.ndarray:
    (folder / "part.tflite").write_bytes(data)
    (found,) = LiteRt().load(folder / "part.tflite").run(inputs)
    return found


@pytest.mark.parametrize(("op", "kinds"), [("2", ["CONV_2D"]), ("4", ["FULLY_CONNECTED"])])
def test_a_part_takes_and_gives_integers(layers: OnnxLayers, tmp_path: Path, op: str, kinds: list[str]) -> None:
    part = part_of(layers, op)
    data, taken = litert_part(part.model)
    (tmp_path / "part.tflite").write_bytes(data)
    session = LiteRt().load(tmp_path / "part.tflite")
    assert [k.name for k in session.kernels()] == kinds
    assert session.float_islands() == ()
    assert [dtype for _, dtype in taken] == [np.dtype("int8")]
    (q,) = drawn(taken)
    y = run(data, [q], tmp_path)
    assert y.dtype == np.int8

    # The same through the quantizers: their scales and zero points, and the order of dimensions of PyTorch.
    x, scales = q, {t.name: onnx.numpy_helper.to_array(t) for t in part.model.graph.initializer}
    ends = [n for n in part.model.graph.node if n.name.endswith(FLOAT_SIDE)]
    (s_x, z_x), (s_y, z_y) = ((scales[n.input[1]], scales[n.input[2]].astype(np.float32)) for n in ends)
    lower = 128 if scales[ends[0].input[2]].dtype == np.uint8 else 0
    x = ((x.astype(np.float32) + lower - z_x) * s_x).astype(np.float32)
    if x.ndim == 4:
        x = np.ascontiguousarray(x.transpose(0, 3, 1, 2))
    outer = run(serialized(translate(part.model, {})), [x], tmp_path)
    lower = 128 if scales[ends[1].input[2]].dtype == np.uint8 else 0
    back = (y.astype(np.float32) + lower - z_y) * s_y
    np.testing.assert_allclose(back.transpose(0, 3, 1, 2) if back.ndim == 4 else back, outer, rtol=1e-6)


def test_a_float_part_has_its_channels_last(tmp_path: Path) -> None:
    layers = OnnxLayers(onnx.load(float_file(net().eval(), (X[:2],), tmp_path / "float.onnx")), batch=2)
    part = layers.part(["2"])
    assert part is not None
    data, taken = litert_part(part.model)
    assert taken == [((2, 8, 8, 8), np.dtype("float32"))]
    x = torch.randn(2, 8, 8, 8)
    with torch.no_grad():
        expected = net()[2](x).permute(0, 2, 3, 1)
    y = run(data, [np.ascontiguousarray(x.permute(0, 2, 3, 1).numpy())], tmp_path)
    np.testing.assert_allclose(y, expected.numpy(), rtol=1e-4, atol=1e-5)


def test_a_layers_own_transposition_stays(tmp_path: Path) -> None:
    class Turned(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(2).transpose(1, 2)

    layers = OnnxLayers(onnx.load(float_file(Turned(), (X[:2],), tmp_path / "float.onnx")), batch=2)
    names = next(g for g in layers.groups() if any("transpose" in op for op in g))
    part = layers.part(names)
    assert part is not None
    data, taken = litert_part(part.model)
    (x,) = drawn(taken)
    np.testing.assert_array_equal(run(data, [x], tmp_path), x.transpose(0, 2, 1))
