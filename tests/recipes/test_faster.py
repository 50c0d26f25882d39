"""Layers go back to float only where the engine's clock says so; a clock that is made up decides it here."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from isobit.core.errors import EngineError, SettingError
from isobit.engines import OnnxRuntime
from isobit.recipes import faster as module
from isobit.recipes.faster import Faster, faster
from isobit.recipes.recipe import recipe_of

needs_onnxruntime = pytest.mark.skipif(bool(OnnxRuntime().missing()), reason=OnnxRuntime().missing())


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 10)
    ).eval()


def data() -> list[torch.Tensor]:
    return [torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(1)) for _ in range(3)]


class Slow:
    """A session whose time is 1 ms for each DequantizeLinear of a depthwise weight, and 10 ms for all else."""

    def __init__(self, path: Path) -> None:
        graph = onnx.load(path).graph
        integers = [t for t in graph.initializer if t.data_type == onnx.TensorProto.INT8]
        self.ms = 10.0 + sum(tuple(t.dims) == (8, 1, 3, 3) for t in integers)


def made_up(sessions: Sequence[Slow], inputs: Sequence[np.ndarray], *, runs: int) -> list[list[float]]:
    assert inputs[0].shape == (1, 3, 8, 8)
    return [[s.ms] * runs for s in sessions]


@needs_onnxruntime
def test_only_the_kind_that_is_slower_is_left_in_float(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "interleaved", made_up)
    monkeypatch.setattr(OnnxRuntime, "load", lambda self, path: Slow(path))
    asked = recipe_of(target="onnxruntime-x86")
    found, record = faster(network(), data(), asked, OnnxRuntime())
    assert found.keep_float == ("2",)
    assert {k.kind: k.undone for k in record.kinds} == {"conv": False, "depthwise conv": True, "linear": False}
    assert (record.float_ms, record.quantized_ms) == (10, 10)


@needs_onnxruntime
def test_on_the_real_engine_it_measures_every_kind_and_gives_a_recipe_that_runs() -> None:
    found, record = faster(network(), data(), recipe_of(target="onnxruntime-x86"), OnnxRuntime(), Faster(runs=3))
    assert {k.kind for k in record.kinds} == {"conv", "depthwise conv", "linear"}
    assert all(k.quantized_ms > 0 and k.float_ms > 0 for k in record.kinds)
    assert found.keep_float == tuple(name for k in record.kinds if k.undone for name in k.layers)


def test_an_engine_that_is_missing_and_settings_that_make_no_sense(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OnnxRuntime, "missing", lambda self: "not here")
    with pytest.raises(EngineError, match="not here"):
        faster(network(), data(), recipe_of(target="onnxruntime-x86"), OnnxRuntime())
    with pytest.raises(SettingError, match="gain"):
        Faster(gain=1.0)
    with pytest.raises(SettingError, match="at least 1"):
        Faster(runs=0)
