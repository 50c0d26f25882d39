"""Curvature: gradient and Hessian diagonal against the exact ones, and EWGS in the loop."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import isobit
from algorithms.blobs import Blobs, evaluation, network, prepared
from isobit.algorithms.curvature import curious, show_curvature
from isobit.algorithms.training import Training
from isobit.core.batches import Batch
from isobit.core.errors import SettingError
from isobit.graph.slots import Slot


def ewgs(bn_fold: int = -1, net: nn.Module | None = None) -> fx.GraphModule:
    x = evaluation()[0][0]
    model = isobit.prepare(net or network(), x, target="academic", bits=4, bn_fold=bn_fold, method="ewgs")
    isobit.calibrate(model, [x])
    return model


def linear() -> fx.GraphModule:
    """One layer: all is known in closed form."""
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(5, 3, bias=False)), torch.rand(7, 5)
    model = isobit.prepare(net, x, target="academic", bits=8, method="ewgs")
    isobit.calibrate(model, [x])
    return model


class Kept:
    """Takes what a quantizer is told."""

    def __init__(self, slot: Slot, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gradient = self.diagonal = torch.empty(0)
        monkeypatch.setattr(slot.quantizer, "update_delta", self.take)

    def take(self, gradient: Tensor, diagonal: Tensor) -> None:
        self.gradient, self.diagonal = gradient, diagonal


def test_one_layer_in_closed_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """L = Σ (x Wᵀ)² / n: ∂L/∂W = 2 (W xᵀ x) / n, its Hessian's diagonal 2 Σ x² / n; to x 2 (y W) / n and 2 Σ W² / n."""
    model = linear()
    activation, weight = (Kept(slot, monkeypatch) for slot in curious(model))
    data = [Batch((torch.rand(7, 5, generator=torch.Generator().manual_seed(i)),)) for i in (1, 2)]
    assert show_curvature(model, data, lambda b: model(*b.inputs).square().sum() / 7, probes=500) == 2
    slots = curious(model)
    x = [slots[0].quantizer.eval()(b.inputs[0]).detach() for b in data]
    w = slots[1].quantizer.eval()(model.get_submodule("0").weight).detach()
    torch.testing.assert_close(activation.gradient, torch.cat([2 * (v @ w.T) @ w / 7 for v in x]))
    torch.testing.assert_close(weight.gradient, sum(2 * w @ v.T @ v / 7 for v in x) / 2)
    exact = torch.cat([2 * w.square().sum(0).expand(7, 5) / 7] * 2)
    torch.testing.assert_close(activation.diagonal.mean(), exact.mean(), rtol=0.05, atol=0)
    exact = sum(2 * v.square().sum(0).expand(3, 5) / 7 for v in x) / 2
    torch.testing.assert_close(weight.diagonal, exact, rtol=0.2, atol=0)
    torch.testing.assert_close(weight.diagonal.mean(), exact.mean(), rtol=0.05, atol=0)


@pytest.mark.parametrize("bn_fold", [-1, 2, 4])
def test_the_trace_is_that_of_the_exact_hessian(bn_fold: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the last layer's weight, by torch's own Hessian of the network behind its quantizer."""
    model, (x, y) = ewgs(bn_fold), evaluation()[0]
    slot = curious(model)[-1]
    assert slot.point == "6.weight"
    kept, inputs = Kept(slot, monkeypatch), []
    layer = model.get_submodule("6").eval()
    hook = layer.register_forward_pre_hook(lambda _, seen: inputs.append(seen[0].detach()))
    for other in curious(model)[:-1]:
        Kept(other, monkeypatch)
    show_curvature(model, [Batch((x,), y)], lambda b: F.cross_entropy(model(*b.inputs), y), probes=200)
    hook.remove()

    def loss(w: Tensor) -> Tensor:
        return F.cross_entropy(inputs[0] @ w.T + layer.bias, y)

    w = slot.quantizer(layer.weight).detach()
    exact = torch.autograd.functional.hessian(loss, w).reshape(w.numel(), -1).diagonal()
    torch.testing.assert_close(kept.gradient, torch.autograd.functional.jacobian(loss, w), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(kept.diagonal.sum(), exact.sum(), rtol=0.1, atol=0)


def test_nothing_else_changes() -> None:
    model, (x, y) = ewgs(4).train(), evaluation()[0]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    data = [Batch((x,), y)]
    assert show_curvature(model, data, lambda b: F.cross_entropy(model(*b.inputs), y)) == 6
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed and all(key.endswith("quantizer.delta") for key in changed)
    assert all(m.training for m in model.modules()) and all(p.grad is None for p in model.parameters())
    assert show_curvature(prepared(), data, lambda _: 1 / 0) == 0  # type: ignore[arg-type, return-value]


def test_in_the_loop_it_comes_every_few_epochs_and_resumes_to_the_bit(tmp_path: Path) -> None:
    pytest.importorskip("lightning", reason="Lightning is not installed")
    from isobit.algorithms.training import train

    net = network()
    train(net, Blobs(), evaluation(), Training(epochs=3, learning_rate=0.05), folder=tmp_path / "float")
    settings = Training(epochs=4, learning_rate=0.01, curvature_epochs=2)
    whole, resumed, never = (ewgs(4, net) for _ in range(3))
    want = train(whole, Blobs(), evaluation(), settings, folder=tmp_path / "whole")
    with pytest.raises(RuntimeError, match="killed"):
        train(ewgs(4, net), Blobs(dies_in=2), evaluation(), settings, folder=tmp_path / "broken")
    got = train(resumed, Blobs(), evaluation(), settings, folder=tmp_path / "broken")
    assert got.epochs == want.epochs
    assert all(torch.equal(v, whole.state_dict()[k]) for k, v in resumed.state_dict().items())
    train(never, Blobs(), evaluation(), Training(epochs=4, learning_rate=0.01), folder=tmp_path / "never")
    assert want.last is not None and want.last.accuracy > 80
    deltas = [[float(slot.quantizer.delta) for slot in curious(model)] for model in (whole, never)]
    assert all(delta == pytest.approx(1e-3) for delta in deltas[1])
    assert all(delta != pytest.approx(1e-3) for delta in deltas[0])


def test_a_number_of_epochs_that_makes_no_sense() -> None:
    with pytest.raises(SettingError, match="curvature_epochs has to be at least 0"):
        Training(curvature_epochs=-1)
