"""NNIE's file by hand: its numbers, the integers that a tool makes of the weights, and what is refused."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import numpy_helper
from torch import nn

import isobit
from isobit.core.errors import ArtifactError, UnsupportedError
from isobit.core.geometric import values
from isobit.core.grid import Geometric
from isobit.export import READERS
from isobit.export.beside import write_beside
from isobit.export.nnie_parameters import nnie
from isobit.export.octaves import Octaves, octaves_of, octaves_up_to
from isobit.graph.convert import convert
from isobit.graph.deployed import CodebookWeight
from vendor import quantized
from zoo import small_networks


def by_hand(x: np.ndarray, clip: float) -> np.ndarray:
    """± (k + 1) for the level 2^((z + k) / 16), 0 for zero: MQBench's formula for NNIE, in float64."""
    z = np.rint(16 * np.log2(clip)) - 127
    size = np.abs(x.astype(np.float64))
    k = np.clip(np.rint(16 * np.log2(np.maximum(size, 1e-300)) - z), np.where(x < 0, 1, 0), 127)
    nothing = (x >= -(2 ** ((z + 1 - 16) / 16))) & (x < 2 ** ((z - 16) / 16))
    return np.where(nothing, 0, np.sign(x) * (k + 1)).astype(np.int32)


@pytest.mark.parametrize("parameter", [-37, 0, 16, 45])
def test_the_grid_of_a_parameter(parameter: int) -> None:
    """Its values are those of the simulation; its integers count the levels that are not above a value."""
    grid = Octaves(parameter=parameter)
    assert grid.clip == 2 ** (parameter / 16)
    scale = torch.tensor(2 ** ((parameter - 127) / 16))
    levels = values(scale, Geometric(), 8)
    assert octaves_of(scale, Geometric(), 8) == grid
    assert octaves_up_to(levels.numpy()) == grid
    np.testing.assert_array_equal(grid.integers(levels.numpy()), np.arange(256))
    x = np.random.default_rng(0).normal(0, grid.clip / 2, 5000).astype(np.float32)
    signed = by_hand(x, grid.clip)  # 127 levels lie below 0, whose first number is 2
    np.testing.assert_array_equal(grid.integers(x), np.where(signed < 0, signed + 128, signed + 127))


def test_the_file(tmp_path: Path) -> None:
    """Each layer has one number for an input, of which 16 · log2 is whole: the one next to the largest value seen."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 5)).eval()
    x = torch.randn(64, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    model = isobit.quantize(net, [x], target="nnie", activation_observer="min_max")
    artifact = isobit.export(model, tmp_path / "net.onnx", format="nnie")
    assert [p.name for p in artifact.beside] == ["net.json"]
    held = json.loads(artifact.beside[0].read_text())
    (largest,) = held["nnie"]["gfpq_param_dict"]["0"]
    assert list(held["nnie"]["gfpq_param_dict"]) == ["0", "3"]
    assert 16 * np.log2(largest) == np.rint(16 * np.log2(float(x.abs().max())))


def test_a_tool_rounds_weights_to_what_they_are(tmp_path: Path) -> None:
    """By MQBench's formula from the largest weight of a layer; biases are those of the simulation, to the bit."""
    found = quantized("residual", "nnie")
    path = nnie().export(found.model, tmp_path / "net.onnx", example=found.inputs).path
    held = {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    read, deployed = READERS["nnie"]().read_back(path), convert(found.model)
    for name, layer in (("conv1", "deployed_conv1"), ("conv2", "deployed_conv2"), ("linear", "deployed_linear")):
        w, module = held[f"{name}.weight"], deployed.get_submodule(layer).integer
        assert isinstance(module, CodebookWeight)
        clip = np.abs(w).max()
        signed = by_hand(w, clip)
        z = np.rint(16 * np.log2(clip)) - 127
        rounded = np.where(signed == 0, 0, np.sign(signed) * 2 ** ((z + np.abs(signed) - 1) / 16))
        np.testing.assert_array_equal(rounded.astype(np.float32), w)
        np.testing.assert_array_equal(module.table.numpy()[read.integers[f"{name}.weight"]], w)
        np.testing.assert_array_equal(held[f"{name}.bias"], module.bias().numpy())


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"0": [1.5]}, "16 · log2 is whole, not 1.5"),
        ({"0": [-1.0]}, "16 · log2 is whole, not -1.0"),
        ({"0": [1.0, 2.0]}, "0 has 1 inputs, the file beside .* 2 values"),
        ({"another": [1.0]}, "values for 'another', which is no layer"),
    ],
)
def test_files_that_say_something_else(changed: dict[str, list[float]], text: str, tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3)).eval()
    model = isobit.quantize(net, [torch.randn(4, 3, 6, 6)], target="nnie")
    artifact = isobit.export(model, tmp_path / "net.onnx", format="nnie")
    said = json.dumps({"nnie": {"gfpq_param_dict": changed}})
    write_beside(
        ir.load(artifact.path), tmp_path / "other.onnx", {".json": said}, format="nnie", opset=None,
        metadata=artifact.metadata,
    )  # fmt: skip
    with pytest.raises(ArtifactError, match=text):
        READERS["nnie"]().read_back(tmp_path / "other.onnx")


@pytest.mark.parametrize(
    ("format", "target", "text"),
    [
        ("nnie", "tensorrt", "logarithms alone: quantize for the target nnie"),
        ("nnie", "adreno-fp16", "NNIE holds logarithms alone: export to the format onnx"),
        ("aimet", "nnie", "uniform grids alone"),
        ("tensorrt", "adreno-fp16", "uniform grids alone"),
        ("openvino", "tensorrt-fp16", "uniform grids alone"),
    ],
)
def test_grids_of_another_kind_are_refused(format: str, target: str, text: str, tmp_path: Path) -> None:
    net, inputs = small_networks()["residual"]
    model = isobit.quantize(net, [(inputs,)], target=target)
    with pytest.raises(UnsupportedError, match=text):
        isobit.export(model, tmp_path / "net.onnx", format=format)
    assert not list(tmp_path.iterdir())
