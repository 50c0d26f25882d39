"""TTQ: its two scales, the codebook that it declares, and what it refuses."""

import pytest
import torch

from isobit.core.errors import SettingError, UnsupportedError
from isobit.core.granularity import PerChannel
from isobit.core.grid import Codebook, MidRise
from isobit.core.scheme import PowerOfTwo, Scheme
from isobit.observers import OBSERVERS
from isobit.quantizers.protocol import Role
from isobit.quantizers.ttq import Ttq, TtqQuantizer
from quantizers.calibrating import observed


def calibrated(settings: Ttq, w: torch.Tensor) -> TtqQuantizer:
    return observed(settings.build(Scheme(bits=2), role="weight"), OBSERVERS[Ttq.observer](), w)


def test_both_scales_start_at_the_mean_magnitude() -> None:
    w = torch.randn(8, 30) - 0.4
    quantizer = calibrated(Ttq(), w)
    assert quantizer.positive.item() == quantizer.negative.item() == pytest.approx(w.abs().mean().item(), rel=1e-6)


def test_the_codebook_has_three_values_and_gives_the_output_to_the_bit() -> None:
    w = torch.randn(8, 30)
    quantizer = calibrated(Ttq(), w).eval()
    quantizer.positive.data, quantizer.negative.data = torch.tensor(0.7), torch.tensor(0.3)
    grid, y = quantizer.grid(), quantizer(w).detach()
    assert grid.codebook is not None and grid.scheme.grid == Codebook()
    assert torch.equal(grid.codebook, torch.tensor([-0.3, 0.0, 0.7]))
    delta = 0.05 * w.abs().max()
    expected = torch.where(w > delta, 2, torch.where(w < -delta, 0, 1))
    assert torch.equal(grid.quantize(y).long(), expected)
    assert torch.equal(grid.fake_quantize(y), y)


def test_scales_that_cross_zero_stay_usable() -> None:
    w = torch.randn(8, 30)
    quantizer = calibrated(Ttq(), w)
    quantizer.positive.data, quantizer.negative.data = torch.tensor(-0.7), torch.tensor(0.0)
    assert torch.equal(quantizer.grid().fake_quantize(quantizer(w)), quantizer(w))
    assert quantizer(w).max().item() == pytest.approx(0.7)


def test_training_the_scales_finds_the_mean_of_each_side() -> None:
    """At the least squared error a scale is the mean of what it stands for."""
    torch.manual_seed(0)
    w = torch.cat([torch.rand(3000) * 3, -torch.rand(1000)])
    quantizer = calibrated(Ttq(), w)
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=0.02)
    first = (quantizer(w) - w).square().mean().item()
    for _ in range(400):
        optimizer.zero_grad()
        error = (quantizer(w) - w).square().mean()
        error.backward()
        optimizer.step()
    delta = 0.05 * w.abs().max()
    assert quantizer.positive.item() == pytest.approx(w[w > delta].mean().item(), rel=1e-2)
    assert quantizer.negative.item() == pytest.approx(-w[w < -delta].mean().item(), rel=1e-2)
    assert error.item() < 0.75 * first


def test_training_the_weights_and_scales_fits_an_uneven_teacher() -> None:
    torch.manual_seed(0)
    x, teacher = torch.randn(256, 21), torch.tensor([-0.3, 0.0, 0.9]).repeat(7)[:, None]
    w = torch.randn(21, 1).requires_grad_()
    quantizer = calibrated(Ttq(threshold=0.3), w.detach())
    optimizer = torch.optim.Adam([w, *quantizer.parameters()], lr=0.02)
    losses = []
    for _ in range(600):
        optimizer.zero_grad()
        loss = (x @ quantizer(w) - x @ teacher).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.05 * losses[0]


def test_weights_that_are_not_numbers_stay_so() -> None:
    """A diverged network shows it, instead of going on with some level."""
    x = torch.randn(9)
    quantizer = calibrated(Ttq(), x)
    assert quantizer(torch.where(x > 0, float("nan"), x)).isnan().any()


@pytest.mark.parametrize(
    "scheme, role, message",
    [
        (Scheme(bits=2), "activation", "weights only"),
        (Scheme(bits=4), "weight", "2 bits, not 4"),
        (Scheme(bits=2, signed=False), "weight", "per-tensor scheme"),
        (Scheme(bits=2, symmetric=False), "weight", "per-tensor scheme"),
        (Scheme(bits=2, granularity=PerChannel(0)), "weight", "per-tensor scheme"),
        (Scheme(bits=2, scale=PowerOfTwo()), "weight", "use `twn`"),
        (Scheme(bits=2, grid=MidRise()), "weight", "uniform grid"),
    ],
)
def test_schemes_that_ttq_cannot_express_are_refused(scheme: Scheme, role: Role, message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        Ttq().build(scheme, role=role)


@pytest.mark.parametrize("threshold", [-0.1, 1.0])
def test_a_threshold_that_keeps_nothing_is_refused(threshold: float) -> None:
    with pytest.raises(SettingError, match=r"\[0, 1\)"):
        Ttq(threshold=threshold)


@pytest.mark.filterwarnings("ignore")  # the compiler's own warnings
def test_compiled_and_exported_give_the_eager_values() -> None:
    w = torch.randn(6, 9)
    quantizer = calibrated(Ttq(), w)
    assert torch.equal(torch.compile(quantizer, backend="eager", fullgraph=True)(w), quantizer(w))
    program = torch.export.export(quantizer.eval(), (w,))
    assert torch.equal(program.module()(w), quantizer(w))
