"""SmoothQuant: the formula of the paper, the same function, and where it must not happen."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import isobit
from isobit.algorithms.channel_repair import input_maxima
from isobit.core.errors import CalibrationError, SettingError
from isobit.graph.capture import capture
from isobit.graph.passes import SmoothQuant
from isobit.graph.passes.smooth import MAXIMA


class Readers(nn.Module):
    """A norm that three linear layers read, one that two read in a row, and one that a sum reads too."""

    def __init__(self, norm: type[nn.Module] = nn.LayerNorm) -> None:
        super().__init__()
        self.norm = norm(8)
        self.q, self.k, self.v = nn.Linear(8, 6), nn.Linear(8, 6), nn.Linear(8, 6, bias=False)
        self.up, self.relu, self.down = nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 6)
        self.last, self.head = norm(6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        x = self.q(x) * self.k(x).sigmoid() + self.v(x)
        x = self.last(x + self.down(self.relu(self.up(x))))
        return self.head(x) + x[..., :3]


def data(channels: int = 8) -> Tensor:
    return torch.randn(32, 5, channels, generator=torch.Generator().manual_seed(0))


def uneven(net: nn.Module) -> nn.Module:
    """Outlier channels behind the first norm."""
    torch.manual_seed(2)
    with torch.no_grad():
        for p in net.parameters():
            p.normal_(std=0.5)
        net.norm.weight.copy_(torch.tensor([1.0, 0.5, 60.0, 1.0, -30.0, 1.0, 0.1, 2.0]))
    return net.eval()


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.8, 1.0])
def test_factors_are_those_of_the_paper_for_all_readers_together(alpha: float, norm: type[nn.Module]) -> None:
    net, x = uneven(Readers(norm)), data()
    model = capture(net, x[:2])
    model.meta[MAXIMA] = input_maxima(model, [x[:16], x[16:]])
    report = SmoothQuant(alpha=alpha).apply(model)
    assert report.changed == ("norm, q, k, v", "up, down")
    assert report.left == ("last: getitem (slice) reads it",) or report.left[0].startswith("last: ")
    with torch.no_grad():
        torch.testing.assert_close(model(x), net(x), rtol=1e-4, atol=1e-4)
        seen = net.norm(x).abs().amax((0, 1)).numpy()
    weights = np.abs(np.concatenate([m.weight.detach().numpy() for m in (net.q, net.k, net.v)])).max(0)
    s = seen**alpha / weights ** (1 - alpha)
    np.testing.assert_allclose(model.norm.weight.detach().numpy(), net.norm.weight.detach().numpy() / s, rtol=1e-5)
    for name in "qkv":
        before, after = (m.get_submodule(name).weight.detach().numpy() for m in (net, model))
        np.testing.assert_allclose(after, before * s, rtol=1e-5)


def test_a_sum_or_a_gelu_or_a_second_call_keeps_a_norm_as_it_is() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.linear, self.gelu = nn.LayerNorm(8), nn.Linear(8, 8), nn.GELU()
            self.twice, self.down = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(x)
            x = x + self.linear(x)
            return self.down(self.gelu(self.twice(self.twice(x))))

    net, x = Sum().eval(), data()
    model = capture(net, x[:2])
    model.meta[MAXIMA] = input_maxima(model, [x])
    before = copy.deepcopy(model.state_dict())
    report = SmoothQuant().apply(model)
    assert not report.changed
    assert report.left == ("norm: add (add) reads it",)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_without_maxima_nothing_happens_and_it_says_so() -> None:
    model = capture(uneven(Readers()), data()[:2])
    report = SmoothQuant().apply(model)
    assert not report.changed
    assert report.left[0] == "norm: no calibration data has shown the largest inputs of its linear layers"


def test_outliers_cost_less_and_the_engine_agrees(tmp_path: Path) -> None:
    net, x = uneven(Readers()), data()
    errors = {}
    for alpha in (None, 0.5):
        model = isobit.quantize(net, [x], target="onnxruntime-x86", smooth=alpha)
        with torch.no_grad():
            errors[alpha] = float((model(x) - net(x)).square().mean())
        certificate = isobit.verify(isobit.export(model, tmp_path / "net.onnx").path, model, [x], engine="onnxruntime")
        assert certificate.verdict in ("exact", "bounded")
    assert errors[0.5] < 0.7 * errors[None]


def test_maxima_are_those_of_all_batches() -> None:
    net, x = uneven(Readers()), data()
    model = capture(net, x[:2])
    found = input_maxima(model, [x[:7], (x[7:], torch.zeros(25))])
    with torch.no_grad():
        torch.testing.assert_close(found["q"], net.norm(x).abs().amax((0, 1)))
    with pytest.raises(CalibrationError, match="does not take calibration batch 0"):
        input_maxima(model, [data(9)])


def test_settings_that_cannot_be() -> None:
    with pytest.raises(SettingError, match="from 0 to 1"):
        isobit.quantize(uneven(Readers()), [data()], target="onnxruntime-x86", smooth=1.5)
    with pytest.raises(SettingError, match="smooth needs calibration data"):
        isobit.prepare(uneven(Readers()), data()[:2], target="onnxruntime-x86", smooth=0.5)


def test_a_network_without_such_layers_is_told_in_its_notes() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    model = isobit.quantize(net, [torch.randn(8, 3, 6, 6)], target="onnxruntime-x86", smooth=0.5)
    assert "smooth changed nothing: no channel needs it" in model.meta["notes"]
