"""Files for targets that compute with 16-bit floats, on ONNX Runtime."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import isobit
from isobit.core.errors import SettingError
from isobit.engines import ENGINES
from zoo import small_networks

TARGETS = ("tensorrt-fp16", "adreno-fp16")


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("network", ["residual", "depthwise", "mlp"])
def test_engine_and_simulation_agree_bit_by_bit(network: str, target: str, tmp_path: Path) -> None:
    net, inputs = small_networks()[network]
    model = isobit.quantize(net, [(inputs,)], target=target)
    artifact = isobit.export(model, tmp_path / "net.onnx")
    certificate = isobit.verify(artifact.path, model, [(inputs,)])
    assert certificate.verdict == "exact"
    assert all(c.equal == c.total for c in certificate.comparisons)
    file = onnx.load(artifact.path)
    onnx.checker.check_model(file, full_check=True)
    weights = [t for t in file.graph.initializer if len(t.dims) > 1]
    assert weights and {t.data_type for t in weights} == {onnx.TensorProto.FLOAT16}


def test_subnormals(tmp_path: Path) -> None:
    """1e-5 is a subnormal float16: one target keeps it, the other has 0."""
    net = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.ReLU())
    nn.init.constant_(net[0].weight, 1.0)
    x = torch.full((2, 1, 4, 4), 1e-5)
    x[:, :, 0] = 1.0
    found = []
    for target in TARGETS:
        model = isobit.quantize(net, [x], target=target)
        path = isobit.export(model, tmp_path / f"{target}.onnx").path
        (y,) = ENGINES["onnxruntime"]().load(path).run([x.numpy()])
        found.append(y[0, 0, 1, 1])
    assert found == [np.float32(np.float16(1e-5)), 0.0]


def test_what_does_not_fit_is_clipped_and_said(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.ReLU())
    nn.init.constant_(net[0].weight, 1000.0)
    x = torch.full((2, 1, 4, 4), 100.0)
    x[0, 0, 0, 0] = 90.0
    model = isobit.quantize(net, [x], target="tensorrt-fp16")
    (said,) = model.meta["ranges"]
    assert "100000" in said.reason and "65504" in said.reason
    path = isobit.export(model, tmp_path / "net.onnx").path
    (y,) = ENGINES["onnxruntime"]().load(path).run([x.numpy()])
    assert (y == 65504).all()
    assert isobit.verify(path, model, [x]).verdict == "exact"


@pytest.mark.parametrize(
    "setting",
    [{"weight_quantizer": "lsq"}, {"method": "lsq"}, {"reconstruction": "gptq"}, {"activation_observer": "mse"},
     {"bits": 8}, {"joint_ranges": True}, {"equalize": True}, {"layer_bits": {"0": 8}}],
)  # fmt: skip
def test_floats_have_no_scale_to_find(setting: dict[str, object]) -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU())
    with pytest.raises(SettingError, match="tensorrt-fp16"):
        isobit.quantize(net, [torch.randn(4, 1, 4, 4)], target="tensorrt-fp16", **setting)
