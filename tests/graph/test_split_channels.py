"""Channel splitting: the same function, half the largest weight, roundings that add up, and where it cannot be."""

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import isobit
from isobit.core.errors import SettingError, UnsupportedError
from isobit.core.granularity import PerChannel, PerGroup
from isobit.core.scheme import Scheme
from isobit.graph.capture import capture
from isobit.graph.passes import EqualizeLayers, SplitChannels
from isobit.graph.passes.split_channels import split_rows

X = torch.randn(16, 4, 10, 10, generator=torch.Generator().manual_seed(0))


def with_outlier(net: nn.Module, *, layer: int = -1) -> nn.Module:
    """One large weight in a layer, the last one."""
    torch.manual_seed(1)
    last = [m for m in net.modules() if hasattr(m, "weight") and m.weight.dim() > 1][layer]
    with torch.no_grad():
        for p in net.parameters():
            p.normal_(std=0.3)
        last.weight[(2, 3) if not isinstance(last, nn.ConvTranspose2d) else (3, 2)] = 4.0
    return net.eval()


NETWORKS: dict[str, nn.Module] = {
    "conv": nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 5, 3, padding=1)),
    "pools": nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU6(), nn.MaxPool2d(2), nn.ZeroPad2d(1), nn.Conv2d(8, 5, 1)),
    "prelu": nn.Sequential(nn.Conv2d(4, 8, 3), nn.PReLU(8), nn.Conv2d(8, 5, 1)),
    "linear": nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)),
    "linears": nn.Sequential(nn.Flatten(), nn.Linear(400, 8), nn.ReLU(), nn.Linear(8, 5)),
    "transposed": nn.Sequential(nn.ConvTranspose2d(4, 8, 2), nn.ReLU(), nn.ConvTranspose2d(8, 5, 2)),
    "depthwise": nn.Sequential(
        nn.Conv2d(4, 8, 1), nn.ReLU6(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU6(), nn.Conv2d(8, 5, 1, bias=False)
    ),
}


@pytest.mark.parametrize("share", [0.1, 0.5])
@pytest.mark.parametrize("equalized", [False, True])
@pytest.mark.parametrize("kind", NETWORKS)
def test_the_function_stays_and_the_largest_weight_halves(kind: str, equalized: bool, share: float) -> None:
    net = with_outlier(copy.deepcopy(NETWORKS[kind]))
    model = capture(net, X[:2])
    if equalized:
        EqualizeLayers().apply(model)
    name = [n for n, m in model.named_modules() if hasattr(m, "weight") and m.weight.dim() > 1][-1]
    before = float(model.get_submodule(name).weight.detach().abs().max())
    report = SplitChannels(share=share).apply(model)
    assert len(report.changed) == 1
    assert report.changed[0].endswith(f"{name}: {math.ceil(share * 8)} channels")
    with torch.no_grad():
        torch.testing.assert_close(model(X), net(X), rtol=1e-4, atol=1e-4)
    after = float(model.get_submodule(name).weight.detach().abs().max())
    if not equalized:
        assert after < 0.51 * before
    shapes = {n.name: tuple(n.meta["val"].shape[1:]) for n in model.graph.nodes if n.op == "call_module"}
    seen: dict[str, tuple[int, ...]] = {}
    for node in model.graph.nodes:
        if node.op == "call_module":
            model.get_submodule(str(node.target)).register_forward_hook(
                lambda _, __, y, n=node.name: seen.__setitem__(n, tuple(y.shape[1:]))
            )
    model(X[:3])
    assert seen == shapes


def test_the_roundings_of_the_parts_add_up_to_that_of_the_whole() -> None:
    """Hermite's identity: round((v - 1/2) / 2) + round((v + 1/2) / 2) = round(v), which plain halves do not keep."""
    generator = np.random.default_rng(0)
    v = generator.uniform(-40, 40, size=(1, 5000))
    step = 0.25
    rows, origin = split_rows(torch.tensor(v * step), torch.tensor(step, dtype=torch.float64), 3)
    assert origin == [0, 0, 0]
    np.testing.assert_allclose(rows.sum(0).numpy(), v[0] * step, atol=1e-12)
    np.testing.assert_array_equal(np.round(rows.numpy() / step).sum(0), np.round(v[0]))
    halves, _ = split_rows(torch.tensor(v * step), torch.zeros(()), 3)
    assert (np.round(halves.numpy() / step).sum(0) != np.round(v[0])).mean() > 0.2


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_the_step_is_that_of_the_weights_as_split(granularity: str) -> None:
    net = with_outlier(copy.deepcopy(NETWORKS["conv"]))
    scheme = Scheme(bits=4) if granularity == "tensor" else Scheme(bits=4, granularity=PerChannel(0))
    model = capture(net, X[:2])
    SplitChannels(share=0.1, scheme=scheme).apply(model)
    weight, old = (m.get_submodule("2").weight.detach().numpy() for m in (model, net))
    halved = np.concatenate([old, old[:, 3:4] / 2], 1)
    halved[:, 3] /= 2
    limit = np.abs(halved).max() if granularity == "tensor" else np.abs(halved).max((1, 2, 3))[:, None, None]
    step = limit / 7
    np.testing.assert_allclose(weight[:, 8] - weight[:, 3], np.broadcast_to(step / 2, (5, 3, 3)), rtol=1e-4, atol=1e-6)


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1, groups=2), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.c(self.b(x)) + x


def test_where_channels_cannot_be_given_twice_the_reason_is_told() -> None:
    model = capture(Branches().eval(), X[:2])
    report = SplitChannels().apply(model)
    assert report.left == (
        "a: its output has several readers",
        "c: add (add) stands behind it",
        "b: b has groups of channels",
    )
    assert not report.changed
    net = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1, groups=2)).eval()
    report = SplitChannels().apply(capture(net, X[:2]))
    assert report.left == (
        "0: nothing in front of the depthwise 0 gives its channels twice",
        "1: 2 has groups: it would not add the two halves up",
    )


@pytest.mark.parametrize("target", ["snpe", "onnxruntime-x86"])
def test_an_outlier_costs_less_and_the_engine_agrees(target: str, tmp_path: Path) -> None:
    net = with_outlier(nn.Sequential(*copy.deepcopy(NETWORKS["depthwise"]), nn.ReLU(), nn.Conv2d(5, 3, 1)), layer=-2)
    errors = {}
    for share in (0.0, 0.1):
        model = isobit.quantize(
            net,
            [X],
            target=target,
            weight_bits=4,
            weight_observer="min_max",
            split_channels=share,
            equalize=False,
            reconstruction="none",
        )
        with torch.no_grad():
            errors[share] = float((model(X) - net(X)).square().mean())
        path = isobit.export(model, tmp_path / "net.onnx").path
        certificate = isobit.verify(path, model, [X], engine="onnxruntime")
        assert certificate.verdict == "exact" or certificate.cause.startswith("all integers are equal")
    if target == "snpe":  # one scale: where each channel has its own, an outlier disturbs that one alone
        assert errors[0.1] < errors[0.0]


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_shares_that_cannot_be(share: float) -> None:
    with pytest.raises(SettingError):
        SplitChannels(share=share)
    with pytest.raises(SettingError, match="share of channels"):
        isobit.quantize(with_outlier(copy.deepcopy(NETWORKS["conv"])), [X], target="snpe", split_channels=share)


def test_scales_of_groups_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="a group of them shares a scale"):
        SplitChannels(scheme=Scheme(granularity=PerGroup(1, 4)))
