import pytest
import torch
from torch import nn

from analysis.nets import branches, mlp
from isobit.analysis.analyze import measure
from isobit.analysis.findings import channels, findings, responsible
from isobit.analysis.layers import quantized_layers
from isobit.analysis.noise import Noise
from isobit.recipes.workflow import quantize


def depthwise(*, ranges: list[float]) -> nn.Module:
    """conv, depthwise conv with the given ranges of its channels, conv."""
    torch.manual_seed(0)
    n = len(ranges)
    net = nn.Sequential(nn.Conv2d(3, n, 1), nn.Conv2d(n, n, 3, groups=n, padding=1), nn.ReLU(), nn.Conv2d(n, 4, 1))
    with torch.no_grad():
        for i, value in enumerate(ranges):
            net[1].weight[i] *= value / net[1].weight[i].abs().max()
            net[3].weight[:, i] /= max(value, 1e-3)
    return net


def found(net: nn.Module, target: str, *, lost: float | None = None, **settings: object) -> tuple[str, ...]:
    x = torch.randn(16, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    model = quantize(net, [x], target=target, **settings)
    layers = quantized_layers(model)
    return findings(model, layers, measure(model, layers, [x]), lost=lost)


def about(texts: tuple[str, ...], words: str) -> list[str]:
    return [t for t in texts if words in t]


def test_channels_of_a_depthwise_layer() -> None:
    net = depthwise(ranges=[50.0, 1.0, 0.2, 0.0, 25.0])
    model = quantize(net, [torch.randn(8, 3, 6, 6)], target="tvm", weight_observer="min_max", equalize=False)
    layer = next(x for x in quantized_layers(model) if x.name == "1")
    assert layer.label == "depthwise conv"
    c = channels(layer)
    assert (c.count, c.zero) == (5, (3,))
    assert c.ratio == pytest.approx(250.0, rel=1e-5)
    assert c.coarse == (2,)  # the scale is 50 / 127 = 0.39, or 0.5 as a power of two: 0.2 is less than one step


def test_one_scale_for_channels_that_differ() -> None:
    (text,) = about(found(depthwise(ranges=[50.0, 1.0, 0.2, 25.0]), "snpe", equalize=False), "one weight scale")
    assert "1 (depthwise conv, 250 times, at most 3 levels in 1 of 4 channels)" in text
    assert "onnxruntime-x86" in text
    assert "snpe" not in text
    assert "0 (conv" not in text
    assert not about(found(depthwise(ranges=[50.0, 1.0, 0.2, 25.0]), "snpe"), "one weight scale")  # equalized


def test_a_scale_per_channel_is_no_finding() -> None:
    assert not about(found(depthwise(ranges=[50.0, 1.0, 0.2, 25.0]), "onnxruntime-x86"), "one weight scale")
    assert not about(found(depthwise(ranges=[50.0, 1.0, 0.6, 25.0]), "snpe", equalize=False), "one weight scale")


def test_zero_and_dead_channels() -> None:
    net = depthwise(ranges=[1.0, 0.0, 2.0, 1.0])
    net[1].bias.data[:2] = torch.tensor([-100.0, -1.0])
    texts = found(net, "onnxruntime-x86")
    assert about(texts, "as good as zero") == [
        "channels whose weights are as good as zero: 1 (1 of 4). They only give their bias: prune them"
    ]
    assert about(texts, "0 in every sample") == [
        "channels of the output that are 0 in every sample of the analysis: 1 (2 of 4)"
    ]


def test_the_layer_responsible_is_named_where_accuracy_is_lost() -> None:
    net = depthwise(ranges=[4000.0, 1.0, 0.2, 0.3])
    first = found(net, "snpe", equalize=False)[0]
    assert first.startswith("the output's SQNR is ")
    assert "Layers responsible, by their share of the noise when each is quantized alone: " in first
    assert "1 (depthwise conv) " in first
    assert "0 (conv)" not in first
    assert found(net, "snpe", lost=0.25, equalize=False)[0].startswith(
        "quantization costs 25.0% of the samples. Layers responsible"
    )
    good = depthwise(ranges=[1.0, 1.0, 1.0, 1.0])
    assert not about(found(good, "onnxruntime-x86", lost=0.001), "responsible")
    assert about(found(good, "onnxruntime-x86", lost=0.02), "quantization costs 2.0% of the samples")


def test_low_sqnr_names_the_first_and_the_lowest() -> None:
    model, x = mlp(bits=None)
    layers = quantized_layers(model)
    assert not about(findings(model, layers, measure(model, layers, [x])), "SQNR below")
    model, x = branches("tvm")
    layers = quantized_layers(model)
    measurement = measure(model, layers, [x], samples=0)
    bad = torch.ones(4), torch.tensor([1.0, 1.0, 1.0, 2.0])
    for name in ("body", "head"):
        measurement.accumulated[name] = Noise()
        measurement.accumulated[name].add(*bad)
    measurement.accumulated["head"].add(torch.ones(4), torch.zeros(4))
    (text,) = about(findings(model, layers, measurement), "SQNR below")
    assert text == (
        "2 of 8 layers have an SQNR below 10 dB when everything is quantized: first body (6.0 dB), lowest head (2.0 dB)"
    )


def test_clipped_activations() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4))
    model = quantize(net, [torch.randn(64, 6)], target="onnxruntime-x86")
    layers = quantized_layers(model)
    wide = measure(model, layers, [3.0 * torch.randn(64, 6)])
    (text,) = about(findings(model, layers, wide), "outside the range")
    shares = {d.name: d.clipped / d.values for d in wide.activations.values()}
    assert shares["input"] > 0.1
    assert f"input ({shares['input']:.1%})" in text


def test_values_clipped_by_a_power_of_two() -> None:
    """The largest value 1.4 asks for the scale 1.4 / 127 = 2^-6.50: the nearest power of two, 2^-7, ends at 0.99."""
    net = nn.Sequential(nn.Linear(4, 4))
    x = 1.4 * torch.linspace(-1.0, 1.0, 400).reshape(100, 4)
    model = quantize(net, [x], target="tvm", activation_observer="min_max")
    layers = quantized_layers(model)
    (text,) = about(findings(model, layers, measure(model, layers, [x])), "outside the range")
    outside = float(((x > 127.5 / 128) | (x < -128.5 / 128)).float().mean())
    assert f"input ({outside:.1%})" in text
    assert text.endswith("powers of two, and the nearest one can be a smaller one")


def test_float_ops_and_passes_are_named() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.conv = nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1)
            self.act = nn.Sigmoid()
            self.last = nn.Conv2d(4, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.act(self.conv(self.norm(x))))

    texts = found(Net(), "onnxruntime-x86", keep_float=["last"])
    assert "the pass fold_bn left 1 alone: norm: no layer with weights in front of it" in texts
    assert "1 op stays in float, because kept in float by the rule 'last': last" in texts
    assert about(texts, "onnxruntime-x86 quantizes no sigmoid: act")


def test_responsible_names_as_few_as_it_takes() -> None:
    model, _ = branches()
    layers = quantized_layers(model)
    noises = {}
    for name, value in (("stem", 9.0), ("body", 3.0), ("head", 0.1)):
        noises[name] = Noise()
        noises[name].add(torch.zeros(1), torch.tensor([value]))
    assert responsible(layers, noises) == "stem (conv) 90%, body (conv) 10%"
    assert responsible(layers, noises, share=0.5) == "stem (conv) 90%"
