"""Cross-layer equalization: equal ranges, the same function, and where it must not happen."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import isobit
from isobit.graph.capped import CappedReLU
from isobit.graph.capture import capture
from isobit.graph.convert import convert
from isobit.graph.passes import EqualizeLayers
from isobit.graph.passes.equalize import find_pairs
from isobit.graph.tensors import tensors_of

X = torch.randn(16, 4, 12, 12, generator=torch.Generator().manual_seed(0)) * 3


def uneven(net: nn.Module) -> nn.Module:
    """Spread the ranges of the first layer's channels six times, which is within the slack of activations."""
    torch.manual_seed(1)
    for layer in net.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            nn.init.normal_(layer.weight, std=0.3)
            assert layer.bias is not None
            nn.init.normal_(layer.bias)
    with torch.no_grad():
        first = next(m for m in net.modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)))
        axis = 1 if isinstance(first, nn.ConvTranspose2d) else 0
        rows = first.weight.movedim(axis, 0)
        rows.mul_(torch.logspace(-0.4, 0.4, len(rows)).reshape(-1, *[1] * (rows.dim() - 1)))
    return net.eval()


BETWEEN: dict[str, nn.Module] = {
    "nothing": nn.Identity(),
    "relu": nn.ReLU(),
    "relu6": nn.ReLU6(),
    "hardtanh 0 to 6": nn.Hardtanh(0.0, 6.0),
    "prelu": nn.PReLU(8),
    "leaky_relu": nn.LeakyReLU(0.1),
    "pools": nn.Sequential(nn.ReLU(), nn.MaxPool2d(2), nn.ZeroPad2d(1), nn.AvgPool2d(2)),
    "dropout": nn.Sequential(nn.ReLU6(), nn.Dropout(0.5)),
}
SECOND: dict[str, nn.Module] = {
    "conv": nn.Conv2d(8, 5, 3, padding=1),
    "depthwise": nn.Conv2d(8, 8, 3, groups=8),
    "grouped": nn.Conv2d(8, 6, 1, groups=2),
    "transposed": nn.ConvTranspose2d(8, 5, 2),
    "linear": nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)),
}


def check(net: nn.Module) -> None:
    """The two weights of the only pair have equal ranges, channel by channel, and the output stays."""
    model = capture(net, X[:2])
    report = EqualizeLayers().apply(model)
    assert len(report.changed) == 1
    with torch.no_grad():
        torch.testing.assert_close(model(X), net(X), rtol=1e-4, atol=1e-4)
    (pair,), _ = find_pairs(model, tensors_of(model))
    first, second = model.get_submodule(pair.first), model.get_submodule(pair.second)
    w1, w2 = (m.weight.detach().numpy() for m in (first, second))
    r1 = np.abs(w1).max(axis=(0, 2, 3) if isinstance(first, nn.ConvTranspose2d) else (1, 2, 3))
    groups = getattr(second, "groups", 1)
    if isinstance(second, nn.ConvTranspose2d):
        r2 = np.abs(w2).max(axis=(1, 2, 3))
    else:
        parts = np.split(w2, groups)
        r2 = np.concatenate([np.abs(part).max(axis=(0, *range(2, part.ndim))) for part in parts])
    np.testing.assert_allclose(r1, r2, rtol=1e-3)


@pytest.mark.parametrize("between", BETWEEN)
def test_ranges_are_equal_over_what_scales(between: str) -> None:
    check(uneven(nn.Sequential(nn.Conv2d(4, 8, 3), copy.deepcopy(BETWEEN[between]), nn.Conv2d(8, 5, 1))))


@pytest.mark.parametrize("second", SECOND)
def test_ranges_are_equal_in_front_of_every_layer(second: str) -> None:
    check(uneven(nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU6(), copy.deepcopy(SECOND[second]))))


def test_ranges_are_equal_behind_a_transposed_convolution() -> None:
    check(uneven(nn.Sequential(nn.ConvTranspose2d(4, 8, 2), nn.ReLU(), nn.Conv2d(8, 5, 1))))


class Add(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.c(x + self.b(x))


class Concat(Add):
    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.cat([self.a(x)[:, :2], self.b(x)[:, :2]], 1))


class Twice(Add):
    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.a(self.a(x)))


NOT = {
    "add": (Add(), "a: its output has several readers"),
    "concat": (Concat(), "a: slice"),
    "twice": (Twice(), "a: a layer that is called more than once"),
    "hardswish": (nn.Sequential(nn.Conv2d(4, 4, 1), nn.Hardswish(), nn.Conv2d(4, 4, 1)), "0: 1 (hardswish) stands"),
    "threshold": (nn.Sequential(nn.Conv2d(4, 4, 1), nn.Threshold(0.5, 0.0), nn.Conv2d(4, 4, 1)), "0: 1 (other) stands"),
    "two-sided clamp": (nn.Sequential(nn.Conv2d(4, 4, 1), nn.Hardtanh(), nn.Conv2d(4, 4, 1)), "0: 1 (clamp) stands"),
    "flatten": (nn.Sequential(nn.Conv2d(4, 4, 1), nn.Flatten(), nn.Linear(576, 4)), "0: 1 (reshape) stands"),
    "other axis": (nn.Sequential(nn.Conv2d(4, 12, 1), nn.ReLU(), nn.Linear(12, 4)), "0: 2 reads its channels as"),
}


@pytest.mark.parametrize("name", NOT)
def test_where_channels_would_not_scale_along_nothing_happens_and_the_reason_is_told(name: str) -> None:
    net, says = NOT[name]
    model = capture(uneven(net), X[:2])
    report = EqualizeLayers().apply(model)
    assert not report.changed
    assert report.left[0].startswith(says)
    with torch.no_grad():
        torch.testing.assert_close(model(X), net(X), rtol=1e-4, atol=1e-4)


def test_a_channel_with_next_to_no_weights_keeps_an_activation_of_usual_size() -> None:
    """Its bias alone says something: by weights alone its activation would grow by five orders of magnitude."""
    net = uneven(nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU6(), nn.Conv2d(8, 5, 1)))
    with torch.no_grad():
        net[0].weight[3] *= 1e-12
        net[0].bias[3] = 5.0
    model = capture(net, X[:2])
    EqualizeLayers().apply(model)
    cap = model.get_submodule("1").cap
    assert float(cap[3]) < 5 * float(cap.median())
    with torch.no_grad():
        torch.testing.assert_close(model(X), net(X), rtol=1e-4, atol=1e-4)


def test_a_dead_channel_stays() -> None:
    net = uneven(nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 5, 1)))
    with torch.no_grad():
        net[0].weight[2] = 0
        net[0].bias[2] = 0
        net[2].weight[:, 5] = 0
    model = capture(net, X[:2])
    EqualizeLayers().apply(model)
    assert torch.equal(model.get_submodule("0").weight[2], net[0].weight[2])
    assert all(bool(torch.isfinite(v).all()) for v in model.state_dict().values())


@pytest.mark.parametrize("target", ["onnxruntime-x86", "snpe", "tensorrt", "openvino-cpu"])
def test_caps_are_an_integer_op_in_the_file_and_the_engines_agree(target: str, tmp_path: Path) -> None:
    net = uneven(nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU6(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU6()))
    net.append(nn.Conv2d(8, 5, 1)).eval()
    model = isobit.quantize(net, [X], target=target, equalize=True)
    deployed = convert(model)
    assert not any(isinstance(deployed.get_submodule(str(n.target)), CappedReLU) for n in deployed.graph.nodes
                   if n.op == "call_module")  # fmt: skip
    with torch.no_grad():
        torch.testing.assert_close(deployed(X), model(X), rtol=1e-5, atol=1e-5)
    path = isobit.export(model, tmp_path / "net.onnx").path
    if target == "onnxruntime-x86":
        for engine in ("onnxruntime", "openvino"):
            certificate = isobit.verify(path, model, [X], engine=engine)
            assert certificate.verdict == "exact"
            assert not certificate.float_islands
            assert all(c.equal == c.total for c in certificate.comparisons)


def test_quantization_for_one_scale_equalizes_unless_told_otherwise() -> None:
    net = uneven(nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU6(), nn.Conv2d(8, 5, 1)))
    with torch.no_grad():
        exact = net(X)
        errors = {
            choice: float((isobit.quantize(net, [X], target="snpe", equalize=choice)(X) - exact).square().mean())
            for choice in (None, True, False)
        }
    assert errors[None] == errors[True] < 0.8 * errors[False]
