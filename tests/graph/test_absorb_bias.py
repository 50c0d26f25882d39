"""High-bias absorption: c of the paper, the same function above it, and where padding forbids it."""

import numpy as np
import pytest
import torch
from torch import fx, nn

import isobit
from isobit.core.errors import SettingError
from isobit.graph.capped import CappedReLU
from isobit.graph.capture import capture
from isobit.graph.passes import AbsorbBias, EqualizeLayers, FoldBatchNorm
from isobit.graph.passes.folded_moments import moments_of

X = torch.randn(64, 4, 9, 9, generator=torch.Generator().manual_seed(0))
BETA = torch.tensor([5.0, -1.0, 0.5, 2.0, 3.5, 0.0])
GAMMA = torch.tensor([0.5, 1.0, 0.1, -0.2, 0.4, 0.3])


def network(*behind: nn.Module) -> nn.Sequential:
    """A convolution whose batch norm has the statistics of X, by training mode, then what is behind."""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(6, momentum=None)
    net = nn.Sequential(nn.Conv2d(4, 6, 3, bias=False), norm, *behind)
    with torch.no_grad():
        norm.weight.copy_(GAMMA)
        norm.bias.copy_(BETA)
        net.train()(X)
    return net.eval()


def folded(net: nn.Module) -> fx.GraphModule:
    model = capture(net, X[:2])
    FoldBatchNorm().apply(model)
    return model


BEHIND: dict[str, tuple[nn.Module, ...]] = {
    "relu": (nn.ReLU(), nn.Conv2d(6, 5, 1)),
    "no bias": (nn.ReLU(), nn.Conv2d(6, 5, 3, bias=False)),
    "grouped": (nn.ReLU(), nn.Conv2d(6, 4, 3, groups=2)),
    "depthwise": (nn.ReLU(), nn.Conv2d(6, 6, 3, groups=6)),
    "relu6": (nn.ReLU6(), nn.Conv2d(6, 5, 1)),
    "max pool": (nn.ReLU(), nn.MaxPool2d(3, padding=1), nn.Conv2d(6, 5, 1)),
    "linear": (nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5)),
    "reflected": (nn.ReLU(), nn.Conv2d(6, 5, 3, padding=1, padding_mode="reflect")),
}


@pytest.mark.parametrize("kind", BEHIND)
def test_the_bias_falls_by_c_and_the_function_stays_above_it(kind: str) -> None:
    """All values of the absorbed channels are above c here: exactness is asserted, not assumed."""
    net = network(*BEHIND[kind])
    model = folded(net)
    bias = model.get_submodule("0").bias.detach().clone()
    report = AbsorbBias(deviations=6.0).apply(model)
    c = (BETA.double() - 6 * GAMMA.abs().double()).clamp(min=0)
    with torch.no_grad():
        assert bool((net[:2](X) > c[:, None, None])[:, c > 0].all())
        torch.testing.assert_close(model(X), net(X), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose((bias - model.get_submodule("0").bias.detach()).numpy(), c.numpy(), atol=1e-5)
    assert report.changed[0].startswith("0, ")
    assert report.changed[0].endswith(": 3 of 6 channels, up to 2")


def test_three_deviations_change_what_a_normal_tail_would() -> None:
    """On the output of a normal pre-activation: the share of values below c is Φ(-3) = 0.135 %."""
    net = network(nn.ReLU(), nn.Conv2d(6, 5, 1))
    model = folded(net)
    AbsorbBias().apply(model)
    c = (BETA - 3 * GAMMA.abs()).clamp(min=0)
    with torch.no_grad():
        below = (net[:2](X) < c[:, None, None])[:, c > 0].float().mean()
        same = ((model(X) - net(X)).abs() < 1e-4).all(1).float().mean()
    assert 0 < float(below) < 0.004
    assert float(same) > 0.97


def test_a_cap_falls_along_and_equalized_statistics_too() -> None:
    net = network(nn.ReLU6(), nn.Conv2d(6, 5, 1))
    model = folded(net)
    EqualizeLayers().apply(model)
    before, moments = model.get_submodule("2").cap.clone(), moments_of(model, "0")
    s = BETA.double() / moments.mean
    assert float((s[BETA != 0] - 1).abs().max()) > 0.1
    AbsorbBias().apply(model)
    c = ((BETA - 3 * GAMMA.abs()).clamp(min=0) / s.nan_to_num(1.0)).float()
    assert isinstance(model.get_submodule("2"), CappedReLU)
    torch.testing.assert_close(before - model.get_submodule("2").cap, c, rtol=1e-4, atol=1e-5)
    again = AbsorbBias().apply(model)
    assert not again.changed


def test_a_channel_above_its_cap_becomes_a_constant_of_the_next_bias() -> None:
    """β - 6 γ = 9.5 with a cap of 6: the channel is 6 always."""
    net = network(nn.ReLU6(), nn.Conv2d(6, 5, 1))
    with torch.no_grad():
        net[1].bias[0] = 12.5
        net[1].weight[1:] = 0.01
    model = folded(net)
    AbsorbBias(deviations=6.0).apply(model)
    assert float(model.get_submodule("2").cap[0]) == 0
    with torch.no_grad():
        torch.testing.assert_close(model(X), net(X), rtol=1e-3, atol=1e-3)
    quantized = isobit.quantize(net, [X], target="snpe", absorb_bias=True, equalize=False)
    with torch.no_grad():
        assert float((quantized(X) - net(X)).abs().max()) < 0.1 * float(net(X).abs().max())


NOT = {
    "padding": ((nn.ReLU(), nn.Conv2d(6, 5, 3, padding=1)), "0: 3 pads with zeros"),
    "same": ((nn.ReLU(), nn.Conv2d(6, 5, 3, padding="same")), "0: 3 pads with zeros"),
    "a pad": ((nn.ReLU(), nn.ZeroPad2d(1), nn.Conv2d(6, 5, 3)), "0: 3 pads with zeros in front of 4"),
    "a pool": ((nn.ReLU(), nn.AvgPool2d(2, padding=1), nn.Conv2d(6, 5, 1)), "0: 3 pads with zeros in front of 4"),
    "transposed": ((nn.ReLU(), nn.ConvTranspose2d(6, 5, 3)), "0: the transposed convolution 3 meets fewer"),
    "unknown": ((nn.Conv2d(6, 5, 1), nn.ReLU(), nn.Conv2d(5, 5, 1)), "2: no batch norm was merged into it"),
}


@pytest.mark.parametrize("kind", NOT)
def test_where_a_constant_would_not_pass_nothing_happens_and_the_reason_is_told(kind: str) -> None:
    behind, says = NOT[kind]
    net = network(*behind)
    model = folded(net)
    report = AbsorbBias().apply(model)
    assert any(line.startswith(says) for line in report.left), report.left
    if kind != "unknown":
        assert not report.changed
        with torch.no_grad():
            torch.testing.assert_close(model(X), net(X), rtol=1e-4, atol=1e-4)


def test_deviations_below_zero_are_refused() -> None:
    with pytest.raises(SettingError):
        AbsorbBias(deviations=-1.0)
