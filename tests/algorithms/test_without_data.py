"""Without data: ranges against β ± 6 γ, the analytic correction against the empirical one, and what is refused."""

import copy

import pytest
import torch
from torch import Tensor, nn

import isobit
from isobit.algorithms.bias_correction import BiasCorrection
from isobit.algorithms.without_data import AnalyticBiasCorrection, Statistics
from isobit.core.errors import SettingError, UnsupportedError
from isobit.graph.convert import convert, hash_integers
from isobit.graph.insert import slots


class Net(nn.Module):
    """conv, batch norm, ReLU twice, the second one depthwise, and a linear layer."""

    def __init__(self, channels: int = 12) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.bn1 = nn.Conv2d(3, channels, 3, bias=False), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = nn.Conv2d(channels, channels, 3, groups=channels, bias=False), nn.BatchNorm2d(channels)
        self.conv3, self.bn3 = nn.Conv2d(channels, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.linear = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        x = torch.relu(self.bn3(self.conv3(x)))
        y: Tensor = self.linear(x.mean((2, 3)))
        return y


def images(count: int = 512) -> Tensor:
    return torch.randn(count, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def trained_net() -> Net:
    """With the statistics of `images`, and shifts and scales of its own."""
    net = Net()
    with torch.no_grad():
        for norm in (net.bn1, net.bn2, net.bn3):
            norm.weight.uniform_(0.5, 2.0)
            norm.bias.normal_()
    isobit.recalibrate_batch_norm(net, [images()])
    return net.eval()


def test_ranges_are_those_of_batch_norm() -> None:
    """Behind a ReLU: [0, max(β + 6 |γ|)], as one scale per tensor."""
    net = trained_net()
    model = isobit.quantize(net, None, target="onnxruntime-x86", example=(1, 3, 12, 12))
    ranges = {s.point: s.grid().range() for s in slots(model) if not s.point.endswith("weight")}
    for name, norm in (("relu", net.bn1), ("relu:2", net.bn2), ("relu:3", net.bn3)):
        low, high = ranges[name]
        assert float(low) == 0
        assert float(high) == pytest.approx(float((norm.bias + 6 * norm.weight.abs()).detach().max()), rel=1e-2)
    assert "4 of 6 ranges" in model.meta["notes"][0]


def test_channels_that_were_equalized_have_scaled_ranges() -> None:
    """Against the largest values that real inputs give: 6 deviations hold them, and not by orders of magnitude."""
    net = trained_net()
    model = isobit.quantize(net, None, target="snpe", example=(1, 3, 12, 12))
    assert model.meta["equalized"]
    seen = isobit.quantize(net, [images()], target="snpe")
    wide, narrow = ({s.point: float(s.grid().range()[1]) for s in slots(m)} for m in (model, seen))
    for name in ("relu", "relu:2"):
        assert narrow[name] * 0.9 < wide[name] < 4 * narrow[name]


@pytest.mark.parametrize(("target", "bits"), [("onnxruntime-x86", 2), ("snpe", 5), ("academic", 5)])
def test_the_analytic_correction_is_the_empirical_one_within_noise(target: str, bits: int) -> None:
    """Weights of few bits, exact activations: both give back (Ŵ - W) E[x]."""
    net = trained_net()
    x = images()
    statistics = Statistics.of(copy.deepcopy(net), x[:2])
    settings = {"weight_bits": bits, "activation_bits": 32, "layer_bits": {"*": (bits, 8)}}
    one = isobit.prepare(statistics.model, x[:2], target=target, **settings)
    isobit.calibrate(one, [x])
    other = copy.deepcopy(one)
    before = {name: bias_of(one, name) for name in ("conv2", "conv3", "linear")}
    found, left = AnalyticBiasCorrection().apply(one, statistics.known(one))
    assert {f.layer for f in found} == {"conv2", "conv3", "linear"}
    assert left == ("conv1",)
    BiasCorrection().apply(other, [x])
    # what the first layer loses is in the empirical correction of the second one: compare where it is small
    for name in ("conv2", "conv3", "linear"):
        a, b = bias_of(one, name) - before[name], bias_of(other, name) - before[name]
        assert torch.corrcoef(torch.stack([a, b]))[0, 1] > 0.9, name


def bias_of(model: nn.Module, name: str) -> Tensor:
    layer = model.get_submodule(name)
    return torch.zeros(layer.weight.shape[0]) if layer.bias is None else layer.bias.detach().clone()


def test_it_brings_the_output_closer() -> None:
    net, x = trained_net(), images()
    errors = []
    for corrects in (False, True):
        model = isobit.quantize(
            net, None, target="onnxruntime-x86", example=x, weight_bits=3, layer_bits={"*": (3, 8)},
            bias_correction=corrects,
        )  # fmt: skip
        with torch.no_grad():
            errors.append(float((model(x) - net(x)).mean(0).abs().mean()))
    assert errors[1] < 0.5 * errors[0]


def test_a_network_without_batch_norm_is_calibrated_on_drawn_images() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU6(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(4 * 64, 3)).eval()
    model = isobit.quantize(net, None, target="onnxruntime-x86", example=(1, 3, 12, 12), input_range=(-1, 1))
    assert len(model.meta["bias_correction"]) == 3  # from the images: no batch norm tells a mean
    ranges = {s.point: s.grid().range() for s in slots(model)}
    low, high = ranges["input"] if "input" in ranges else ranges["x"] if "x" in ranges else ranges["input_1"]
    assert -1.05 < float(low) < -0.5
    assert 0.5 < float(high) < 1.05


def test_vectors_get_normal_values() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3)).eval()
    model = isobit.quantize(net, None, target="onnxruntime-x86", example=(1, 6))
    x = torch.randn(64, 6)
    with torch.no_grad():
        assert float((model(x) - net(x)).square().mean() / net(x).square().mean()) < 0.01


def test_the_same_integers_each_time_and_others_for_another_seed() -> None:
    net, hashes = trained_net(), []
    for seed in (0, 0, 1):
        torch.manual_seed(seed + 5)
        model = isobit.quantize(net, None, target="snpe", example=(1, 3, 12, 12), seed=seed)
        hashes.append(hash_integers(convert(model)))
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize("example", [None, (), (3,), "3,8,8", (1, 3, 0, 8), (1, 3.0, 8, 8)])
def test_an_example_that_is_none(example: object) -> None:
    with pytest.raises(SettingError, match="example has to be"):
        isobit.quantize(Net().eval(), None, target="snpe", example=example)  # type: ignore[arg-type]


def test_an_example_beside_data() -> None:
    with pytest.raises(SettingError, match="only there"):
        isobit.quantize(Net().eval(), [images(8)], target="snpe", example=(1, 3, 12, 12))


@pytest.mark.parametrize("values", [(1, -1), (0, 0), ((0.0, 0.0), (1.0, 1.0))])
def test_a_range_that_is_none(values: object) -> None:
    with pytest.raises(SettingError, match="input_range"):
        isobit.quantize(Net().eval(), None, target="snpe", example=(1, 3, 12, 12), input_range=values)  # type: ignore[arg-type]


def test_words_cannot_be_invented() -> None:
    net = nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(12, 2)).eval()
    with pytest.raises(UnsupportedError, match="give real samples"):
        isobit.quantize(net, None, target="snpe", example=torch.zeros(1, 3, dtype=torch.int64))
