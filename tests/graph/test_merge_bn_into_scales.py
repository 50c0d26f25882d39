"""Batch norm merged into scales: the same output, the same integers up to their sign, and what has to stay."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import isobit
from isobit.core.granularity import PerChannel
from isobit.core.qparams import QParams
from isobit.graph.passes import MergeBatchNormIntoScales
from isobit.graph.slots import weight_slot

LAYERS: dict[str, Callable[[], tuple[nn.Module, nn.Module]]] = {
    "conv": lambda: (nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)),
    "conv with bias": lambda: (nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)),
    "grouped": lambda: (nn.Conv2d(4, 8, 3, groups=2), nn.BatchNorm2d(8)),
    "transposed": lambda: (nn.ConvTranspose2d(3, 8, 3), nn.BatchNorm2d(8)),
    "conv 1d": lambda: (nn.Conv1d(3, 8, 3), nn.BatchNorm1d(8)),
    "linear": lambda: (nn.Linear(6, 8), nn.BatchNorm1d(8)),
}
INPUTS = {"conv 1d": (32, 3, 9), "linear": (32, 6), "grouped": (32, 4, 6, 6)}


def network(kind: str, gamma: list[float]) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    layer, norm = LAYERS[kind]()
    assert isinstance(norm.running_mean, Tensor) and isinstance(norm.running_var, Tensor)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.2, 3)
    nn.init.normal_(norm.bias)  # type: ignore[arg-type]
    norm.weight = nn.Parameter(torch.tensor(gamma))
    x = torch.randn(INPUTS.get(kind, (32, 3, 6, 6)))
    return nn.Sequential(nn.Sequential(layer, norm, nn.ReLU()), nn.Flatten(), nn.LazyLinear(4)).eval(), x


def prepared(kind: str, gamma: list[float], **settings: object) -> tuple[nn.Module, Tensor]:
    net, x = network(kind, gamma)
    net(x)  # the lazy layer learns its size
    bits = (settings["weight_bits"], settings["activation_bits"])
    model = isobit.prepare(net, x, target="academic", keep_float=["2"], layer_bits={"0.0": bits}, **settings)  # type: ignore[arg-type]
    isobit.calibrate(model, [x])
    return model.eval(), x


POSITIVE = [0.5, 1.0, 2.0, 0.1, 1.5, 0.7, 1.2, 3.0]
MIXED = [0.5, -1.0, 2.0, 0.0, -1.5, 0.7, 1e-9, 3.0]
METHODS = {"lsq": 4, "k_means": 3, "ttq": 2, "twn": 2, "apot": 4, "lsq_plus": 8}


@pytest.mark.parametrize("gamma", [POSITIVE, MIXED], ids=["positive", "of every sign"])
@pytest.mark.parametrize("kind", LAYERS)
def test_every_layer_computes_what_it_did(kind: str, gamma: list[float]) -> None:
    model, x = prepared(kind, gamma, weight_bits=4, activation_bits=8, weight_quantizer="lsq")
    with torch.no_grad():
        expected = model(x)
        report = MergeBatchNormIntoScales().apply(model)
        assert report.changed == ("0.1",) and report.left == ()
        torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("gamma", [POSITIVE, MIXED], ids=["positive", "of every sign"])
@pytest.mark.parametrize("method", METHODS)
def test_every_grid_keeps_its_integers(method: str, gamma: list[float]) -> None:
    """With positive factors the integers are those of before; with negative ones their signs turn."""
    model, x = prepared("conv", gamma, weight_bits=METHODS[method], activation_bits=4, method=method)
    layer = model.get_submodule("0.0")
    slot = weight_slot(layer)
    assert slot is not None and isinstance(layer.weight, Tensor)
    with torch.no_grad():
        weight = slot.quantizer(layer.weight)
        before, expected = slot.grid(), model(x)
        assert isinstance(before, QParams)
        report = MergeBatchNormIntoScales().apply(model)
        if report.left:  # 8 bits: -128 has no opposite
            assert method == "lsq_plus" and "no level" in report.left[0]
            return
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    after = slot.grid()
    assert isinstance(after, QParams) and after.scheme.granularity == PerChannel(0)
    old = before.dequantize(before.quantize(weight)) / before.scale
    new = after.dequantize(after.quantize(layer.weight)) / after.scale.reshape(-1, 1, 1, 1)
    signs = torch.tensor([0.0 if abs(g) < 1e-6 else g / abs(g) for g in gamma]).reshape(-1, 1, 1, 1)
    torch.testing.assert_close(new, old * signs, rtol=1e-5, atol=1e-6)


def test_a_one_bit_weight_has_no_zero_for_a_dead_channel() -> None:
    model, _ = prepared("conv", MIXED, weight_bits=1, activation_bits=8, method="bwn")
    report = MergeBatchNormIntoScales().apply(model)
    assert report.changed == ()
    assert "0.1: its factor for a channel is 0 or negative" in report.left[0]


def test_a_second_run_changes_nothing() -> None:
    model, x = prepared("conv", POSITIVE, weight_bits=4, activation_bits=4, method="lsq")
    MergeBatchNormIntoScales().apply(model)
    with torch.no_grad():
        expected = model(x)
    assert MergeBatchNormIntoScales().apply(model).changed == ()
    with torch.no_grad():
        assert torch.equal(model(x), expected)
