"""Calibration: what it finds, what it leaves as it was, and what it refuses."""

import pytest
import torch
from torch import nn

import isobit
from isobit.algorithms.calibration import in_place
from isobit.algorithms.post_training import PostTraining, Preparing
from isobit.core.errors import CalibrationError
from isobit.core.qparams import QParams
from isobit.core.scheme import Scheme
from isobit.graph.capture import capture
from isobit.quantizers import Fixed
from isobit.targets import TARGETS


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4)
    )


def data() -> list[torch.Tensor]:
    torch.manual_seed(1)
    return [torch.randn(8, 3, 8, 8) for _ in range(2)]


def test_a_quantized_network_can_be_trained() -> None:
    model = isobit.quantize(network(), data(), target="onnxruntime-x86").train()
    model(data()[0]).square().sum().backward()
    gradients = [p.grad for name, p in model.named_parameters() if name.endswith("weight") and "slot" not in name]
    assert len(gradients) >= 3
    assert all(g is not None and bool(g.abs().sum() > 0) for g in gradients[-3:])


def test_the_order_in_memory_is_that_of_before() -> None:
    model = isobit.quantize(network(), data(), target="tensorrt")
    assert all(p.is_contiguous() and not p.is_inference() for p in model.parameters())


def test_ranges_are_those_of_the_folded_float_network() -> None:
    net = network().eval()
    model = isobit.quantize(net, data(), target="onnxruntime-x86")
    with torch.no_grad():
        values = torch.cat([net[:3](x) for x in data()])
    slot = next(m for m in model.modules() if getattr(m, "point", "") == "2")
    assert slot.grid().scale.item() == pytest.approx(values.max().item() / 255, rel=1e-5)
    assert slot.grid().zero_point.item() == 0


def test_biases_lie_on_the_grid_of_the_accumulator() -> None:
    model = isobit.quantize(network(), data(), target="onnxruntime-x86")
    layer, feed = model.get_submodule("3"), next(m for m in model.modules() if getattr(m, "point", "") == "2")
    step = feed.grid().scale.double() * layer.weight_slot.grid().scale.double()
    integers = layer.bias.double() / step
    assert (integers - integers.round()).abs().max() < 1e-3


@pytest.mark.parametrize(
    "bad, text",
    [
        ([], "is empty"),
        ([torch.zeros(0, 3, 8, 8)], "is empty"),
        ([torch.full((4, 3, 8, 8), 0.5)], "constant: every value"),
        ([torch.full((4, 3, 8, 8), float("nan"))], "NaN"),
        ([torch.full((4, 3, 8, 8), float("inf"))], "Inf"),
        ([torch.randn(4, 3, 8, 8), torch.randn(4, 3, 9, 9)], "shape"),
        ([(torch.randn(4, 3, 8, 8), torch.zeros(4), torch.zeros(4))], "ambiguous"),
        ([torch.randn(4, 3, 8, 8), torch.randn(4, 3, 8, 8).numpy().tolist()], "ambiguous"),
        (7, "batches of tensors"),
    ],
)
def test_bad_data_is_named(bad: object, text: str) -> None:
    with pytest.raises(CalibrationError, match=text):
        isobit.quantize(network(), bad, target="tensorrt")  # type: ignore[arg-type]


def test_data_that_can_be_read_only_once_is_read_whole() -> None:
    once = isobit.quantize(network(), iter(data()), target="tensorrt")
    again = isobit.quantize(network(), data(), target="tensorrt")
    x = torch.randn(3, 3, 8, 8)
    assert torch.equal(once(x), again(x))


def test_activations_overwrite_only_what_a_layer_made_for_them() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.again = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1)
            self.first, self.second, self.third = nn.ReLU(), nn.ReLU6(), nn.ReLU()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.first(self.conv(self.third(x)))
            return self.second(z := self.again(y)) + z

    model = capture(Net(), torch.randn(2, 3, 6, 6))
    x = torch.randn(2, 3, 6, 6)
    kept, want = x.clone(), model(x)
    with torch.no_grad(), in_place(model):
        assert [m.inplace for m in (model.first, model.second, model.third)] == [True, False, False]
        assert torch.equal(model(x), want)
    assert torch.equal(x, kept)
    assert not model.first.inplace


def test_a_quantizer_may_start_from_the_weight_itself() -> None:
    class Starting(nn.Module):
        def __init__(self, scheme: Scheme) -> None:
            super().__init__()
            self.inner = Fixed().build(scheme, role="weight")
            self.scheme = scheme

        def calibrate(self, qparams: QParams) -> None:
            self.inner.calibrate(qparams)

        def start(self, weight: torch.Tensor) -> None:
            self.copy = nn.Parameter(weight)

        def forward(self, w: torch.Tensor) -> torch.Tensor:
            del w
            return self.inner(self.copy)

        def grid(self) -> QParams:
            return self.inner.grid()

    class Settings:
        observer = "min_max"

        def build(self, scheme: Scheme, *, role: str = "activation") -> nn.Module:
            return Starting(scheme)

    net = network().eval()
    profile = TARGETS["tensorrt"]
    model = PostTraining(preparing=Preparing(weight=Settings())).apply(net, data()[0][:1], data(), profile)
    model.train()(data()[0]).square().sum().backward()
    found = {name: p for name, p in model.named_parameters() if name.endswith("quantizer.copy")}
    assert len(found) == 3
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in found.values())


@pytest.mark.parametrize("bn_fold", [None, -1, 0, 4])
def test_a_quantized_network_is_finished_under_every_folding(bn_fold: int | None) -> None:
    model = isobit.quantize(network().eval(), data(), target="onnxruntime-x86", bn_fold=bn_fold)
    x = data()[0]
    before = model(x)
    isobit.finish(model)
    assert torch.equal(model(x), before)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())  # -1: into the scales of the weights
