"""The three calls: what they take, and what they say when they cannot."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import isobit
from isobit.core.errors import CalibrationError, EngineError, SettingError, UnknownNameError
from isobit.engines import ENGINES
from isobit.graph.convert import convert, hash_integers
from isobit.recipes.recipe import recipe_of as recipe
from isobit.recipes.workflow import example_of


def small() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 5)).eval()


DATA = list(torch.randn(3, 4, 3, 6, 6, generator=torch.Generator().manual_seed(1)))
LABELS = torch.tensor([0, 1, 2, 3])


def walked() -> Iterator[Tensor]:
    """Data that can be read only once, its first batch empty."""
    yield DATA[0][:0]
    yield from DATA


@pytest.mark.parametrize(
    "data",
    [
        DATA, tuple(DATA), [(x,) for x in DATA], [(x, LABELS) for x in DATA], [((x,), LABELS) for x in DATA],
        [{"pixels": x, "labels": LABELS} for x in DATA], [x.numpy() for x in DATA], walked(), torch.cat(DATA),
    ],
    ids=["list", "tuple", "tuples", "labels", "nested", "dicts", "numpy", "generator", "tensor"],
)  # fmt: skip
def test_any_form_of_data_gives_the_same_integers(data: Any) -> None:
    expected = hash_integers(convert(isobit.quantize(small(), DATA, target="snpe")))
    assert hash_integers(convert(isobit.quantize(small(), data, target="snpe"))) == expected


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ([], "is empty"),
        ([DATA[0][:0]], "is empty"),
        ("cat.jpg", "got str"),
        (3, "got int"),
        ([[DATA[0], LABELS, LABELS]], "3 parts is ambiguous"),
        ([DATA[0], "text"], "got str"),
    ],
)
def test_data_that_is_none(data: Any, says: str) -> None:
    with pytest.raises(CalibrationError, match=says):
        isobit.quantize(small(), data, target="snpe")


def test_bits_and_settings() -> None:
    assert (recipe(target="tvm", bits=4).weight_bits, recipe(target="tvm", bits=4).activation_bits) == (4, 4)
    assert recipe(target="tvm", keep_float=("a", "b"), seed=None).keep_float == ("a", "b")
    with pytest.raises(SettingError, match="either bits or weight_bits"):
        recipe(target="tvm", bits=4, weight_bits=4)
    with pytest.raises(UnknownNameError, match="did you mean 'keep_float'"):
        isobit.quantize(small(), DATA, target="tvm", keep_floats=["a"])
    with pytest.raises(SettingError, match="1 to 8 bits, got 9"):
        isobit.quantize(small(), DATA, target="tvm", bits=9)
    with pytest.raises(UnknownNameError, match="did you mean 'tensorrt'"):
        isobit.quantize(small(), DATA, target="TensorRT")


def test_the_network_stays_and_the_result_knows_its_recipe() -> None:
    net = small()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    model = isobit.quantize(net, DATA, target="tvm", bits=4)
    assert model.meta["recipe"] == {
        "target": "tvm", "format": 1, "weight_bits": 4, "activation_bits": 4, "weight_quantizer": "fixed",
        "stochastic_rounding": False, "absorb_bias": False, "exact": False, "split_channels": 0.0,
        "joint_ranges": False, "activation_quantizer": "fixed", "observers": {}, "keep_float": [], "quantize": [],
        "layer_bits": {}, "bn_synchronized": True, "seed": 0,
    }  # fmt: skip
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert not any("slot" in name for name, _ in net.named_modules())
    assert example_of(model)[0].shape == (1, 3, 6, 6)


def test_prepare_gives_a_module_to_train() -> None:
    model = isobit.prepare(small(), DATA[0], target="tensorrt", weight_quantizer="lsq", activation_quantizer="lsq")
    model.train()
    assert torch.equal(model(DATA[0]), small()(DATA[0]))  # nothing is quantized before calibration
    with pytest.raises(SettingError, match=r"isobit\.quantize or isobit\.prepare"):
        example_of(torch.fx.symbolic_trace(small()))


def test_export_and_engines_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = isobit.quantize(small(), DATA, target="onnxruntime-x86")
    with pytest.raises(UnknownNameError, match="unknown exporter 'onx': did you mean 'onnx'"):
        isobit.export(model, tmp_path / "net.onnx", format="onx")
    isobit.export(model, tmp_path / "net.onnx")
    with pytest.raises(UnknownNameError, match="did you mean 'openvino'"):
        isobit.verify(tmp_path / "net.onnx", engine="openvin")
    monkeypatch.setattr(
        ENGINES["onnxruntime"], "missing", lambda _: "ONNX Runtime is not installed. Install it with: …"
    )
    with pytest.raises(EngineError, match="not installed"):
        isobit.verify(tmp_path / "net.onnx", model, DATA)


@pytest.mark.parametrize("method", ["lsq", "pact", "slb"])
def test_the_state_of_a_calibrated_model_quantizes_a_fresh_one(method: str) -> None:
    settings = {"target": "academic", "weight_bits": 2, "activation_bits": 8, "method": method}
    model = isobit.prepare(small(), DATA[0], **settings)
    isobit.calibrate(model, DATA)
    fresh = isobit.prepare(small(), DATA[0], **settings)
    fresh.load_state_dict(fresh.state_dict())
    assert torch.equal(fresh.eval()(DATA[0]), small()(DATA[0]))  # no ranges, so in float as before
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh.eval()(DATA[0]), model.eval()(DATA[0]))
    assert hash_integers(convert(fresh)) == hash_integers(convert(model))
