"""The joint search of ranges: against a scan of all scales, and what it may not do."""

import copy
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

import isobit
from isobit.algorithms.lapq import Lapq, lowest_power, scaled
from isobit.analysis.findings import findings
from isobit.analysis.layers import quantized_layers
from isobit.core.errors import CalibrationError, SettingError, UnsupportedError
from isobit.core.qparams import QParams
from isobit.core.scheme import PowerOfTwo
from isobit.graph.insert import slots
from zoo import small_networks


def scales(model: fx.GraphModule) -> dict[str, Tensor]:
    return {s.point: s.grid().scale.clone() for s in slots(model)}  # type: ignore[union-attr]


def calibrated(net: nn.Module, x: Tensor, **settings: object) -> fx.GraphModule:
    model = isobit.prepare(net.eval(), x[:2], **{"target": "snpe", **settings})  # type: ignore[arg-type]
    isobit.calibrate(model, [x])
    return model


def noise(model: fx.GraphModule, exact: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        y, z = model(x).double().numpy(), exact(x).double().numpy()
    return float(np.square(y - z).sum() / np.square(z).sum())


def one_layer() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 5)).eval()
    return net, torch.distributions.Laplace(0.0, 1.0).sample((400, 12))


def test_as_good_as_a_scan_of_all_pairs_of_scales() -> None:
    """The input's and the weight's, powers of two, around what was found."""
    net, x = one_layer()
    model = calibrated(net, x, target="tvm", bits=3, layer_bits={"*": 3})
    record = Lapq(samples=400, evaluations=200).apply(model, [x])
    assert record.after == pytest.approx(noise(model, net, x), rel=1e-6)
    found = {slot: slot.grid() for slot in (slots(model)[0], slots(model)[-1])}
    assert [slot.point.endswith("weight") for slot in found] == [False, True]
    best = np.inf
    for exponents in product(range(-3, 4), repeat=2):
        for (slot, q), k in zip(found.items(), exponents, strict=True):
            slot.quantizer.calibrate(QParams(q.scale * 2.0**k, q.zero_point, q.scheme))
        best = min(best, noise(model, net, x))
    assert record.after <= best * (1 + 1e-6)


@pytest.mark.parametrize("network", ["residual", "concat", "shared", "mlp"])
def test_the_loss_falls_and_is_that_of_the_model(network: str) -> None:
    net, inputs = small_networks()[network]
    generator = torch.Generator().manual_seed(5)
    data = [(tuple(torch.randn(32, *x.shape[1:], generator=generator) for x in inputs),)]
    model = isobit.prepare(net.eval(), inputs, target="onnxruntime-x86", bits=3, layer_bits={"*": 3})
    isobit.calibrate(model, data)
    exact = copy.deepcopy(model)
    for slot in slots(exact):
        slot.mode = "float"
    before, zeros = scales(model), {s.point: s.grid().zero_point.clone() for s in slots(model)}
    record = Lapq(samples=32, evaluations=60).apply(model, data)
    with torch.no_grad():
        y, z = model.eval()(*data[0][0]).double(), exact.eval()(*data[0][0]).double()
    assert record.after == pytest.approx(float((y - z).square().sum() / z.square().sum()), rel=1e-6)
    assert record.after <= record.start <= record.before
    assert record.after < record.before
    assert record.evaluations <= 60
    assert record.variables == len(before) and record.left == ()
    assert any(not torch.equal(scales(model)[name], scale) for name, scale in before.items())
    if record.power is None:  # zero points and the ratios of channels stay
        for slot in slots(model):
            assert torch.equal(slot.grid().zero_point, zeros[slot.point])
            ratio = slot.grid().scale / before[slot.point]
            torch.testing.assert_close(ratio, ratio.flatten()[0].expand_as(ratio))


def test_never_worse_and_one_evaluation_changes_nothing() -> None:
    net, x = one_layer()
    model = calibrated(net, x, bits=4)
    first = Lapq(samples=64).apply(model, [x])
    before = scales(model)
    again = Lapq(samples=64, evaluations=1).apply(model, [x])
    assert again.before == first.after == again.after
    assert again.power is None
    assert all(torch.equal(scales(model)[name], scale) for name, scale in before.items())


def test_powers_of_two_stay_powers_of_two() -> None:
    net, x = one_layer()
    model = calibrated(net, x, target="tvm", bits=3)
    assert all(isinstance(s.grid().scheme.scale, PowerOfTwo) for s in slots(model))
    Lapq(samples=64).apply(model, [x])
    for scale in scales(model).values():
        assert torch.equal(torch.frexp(scale).mantissa, torch.full_like(scale, 0.5))


def test_a_factor_of_the_scale() -> None:
    net, x = one_layer()
    (slot, *_) = slots(calibrated(net, x))
    q = slot.grid()
    assert isinstance(q, QParams)
    assert float(scaled(q, 10.0).scale / q.scale) == pytest.approx(2**1.5)
    assert torch.equal(scaled(q, 10.0).zero_point, q.zero_point)


def test_the_power_of_the_parabola() -> None:
    assert lowest_power({p: 2 * (p - 2.7) ** 2 + 1 for p in (2.0, 3.0, 4.0)}) == pytest.approx(2.7)
    assert lowest_power({p: (p - 9) ** 2 for p in (2.0, 3.0, 4.0)}) == 4.0
    assert lowest_power({p: -(p**2) for p in (2.0, 3.0, 4.0)}) is None
    assert lowest_power({2.0: 1.0, 3.0: 2.0}) is None


@pytest.mark.parametrize("loss", ["divergence", "labels"])
def test_other_losses_against_torch(loss: str) -> None:
    net, x = one_layer()
    labels = net(x).argmax(1)
    model = calibrated(net, x, bits=3, layer_bits={"*": 3})
    record = Lapq(samples=400, loss=loss, evaluations=40).apply(
        model, [(x[:150], labels[:150]), (x[150:], labels[150:])]
    )  # type: ignore[arg-type]
    with torch.no_grad():
        y, z = model(x), net(x)
    expected = nn.functional.cross_entropy(y, labels if loss == "labels" else z.softmax(1))
    if loss == "divergence":
        expected -= nn.functional.cross_entropy(z, z.softmax(1))
    assert record.after == pytest.approx(float(expected), rel=1e-4, abs=1e-6)
    assert record.after < record.before


def test_what_is_refused() -> None:
    net, x = one_layer()
    model = calibrated(net, x)
    with pytest.raises(CalibrationError, match="needs a label for each sample"):
        Lapq(loss="labels").apply(model, [x])
    with pytest.raises(SettingError, match="loss has to be one of noise, divergence, labels, got 'mse'"):
        Lapq(loss="mse")  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="at least 1 sample"):
        Lapq(samples=0)
    with pytest.raises(SettingError, match="powers"):
        Lapq(powers=())
    learned = calibrated(net, x, weight_quantizer="lsq", activation_quantizer="lsq")
    with pytest.raises(UnsupportedError, match="`fixed` quantizers, and this model has none"):
        Lapq().apply(learned, [x])


def test_before_a_reconstruction_and_in_the_findings() -> None:
    """The steps that were found are those that the reconstruction starts from."""
    net, inputs = small_networks()["mlp"]
    x = torch.randn(32, *inputs[0].shape[1:], generator=torch.Generator().manual_seed(0))
    settings = {"target": "onnxruntime-x86", "bits": 4, "joint_ranges": True, "weight_observer": "mse"}
    settings["activation_observer"] = "mse"  # what a reconstruction takes by itself
    plain = isobit.quantize(net, [x], **settings, reconstruction="none")  # type: ignore[arg-type]
    assert not any("joint search" in text for text in findings(plain, quantized_layers(plain)))
    plain.meta["joint_ranges"] = replace(plain.meta["joint_ranges"], after=2.0, before=1.0, left=("conv1.weight",))
    gained, left = [text for text in findings(plain, quantized_layers(plain)) if "joint search" in text]
    assert "gained nothing in" in gained
    assert "left quantizers alone that have no fixed step: conv1.weight" in left
    learned = isobit.quantize(net, [x], **settings, reconstruction={"name": "adaround", "iterations": 20})  # type: ignore[arg-type]
    assert learned.meta["reconstruction"]
    same = {n: s for n, s in scales(learned).items() if n.endswith(".weight")}
    assert all(torch.equal(s, scales(plain)[n]) for n, s in same.items())
