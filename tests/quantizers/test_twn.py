"""TWN: how near it is to the best ternary weights, and what it refuses."""

import math

import pytest
import torch

from isobit.core.errors import SettingError, UnsupportedError
from isobit.core.granularity import PerChannel, PerGroup
from isobit.core.grid import MidRise
from isobit.core.scheme import PowerOfTwo, Scheme
from isobit.observers import OBSERVERS
from isobit.quantizers.protocol import Role
from isobit.quantizers.twn import Twn, TwnQuantizer
from quantizers.calibrating import observed


def calibrated(settings: Twn, scheme: Scheme, w: torch.Tensor) -> TwnQuantizer:
    return observed(settings.build(scheme, role="weight"), OBSERVERS[Twn.observer](), w)


def test_of_normal_weights_42_percent_become_zero() -> None:
    """Δ = 0.7 sqrt(2 / π) σ = 0.559 σ, and α = E[|w| : |w| > Δ] = 1.186 σ: from the normal distribution's integrals."""
    torch.manual_seed(0)
    y = calibrated(Twn(), Scheme(bits=2), torch.randn(1000, 1000))(w := torch.randn(1000, 1000))
    delta = 0.7 * math.sqrt(2 / math.pi)
    inside = math.erf(delta / math.sqrt(2))
    alpha = 2 * math.exp(-(delta**2) / 2) / math.sqrt(2 * math.pi) / (1 - inside)
    assert (y == 0).double().mean().item() == pytest.approx(inside, abs=2e-3)
    assert y.max().item() == pytest.approx(alpha, rel=2e-3)
    assert torch.equal(y.sign() * w.sign() >= 0, torch.ones_like(y, dtype=torch.bool))


def test_the_error_is_within_two_percent_of_the_best() -> None:
    """Section 2.3 approximates the best threshold: here against all of them, each with its best scale."""
    torch.manual_seed(0)
    w = torch.randn(4000)
    mine = (calibrated(Twn(), Scheme(bits=2), w)(w) - w).square().sum()
    size = w.abs().sort(descending=True).values
    kept = torch.arange(1, len(size) + 1)
    best = (w.square().sum() - size.cumsum(0).square() / kept).min()
    assert best <= mine < 1.02 * best


def test_the_declared_grid_is_minus_one_zero_one_with_the_last_scale() -> None:
    w = torch.randn(4, 9)
    quantizer = calibrated(Twn(), Scheme(bits=2, granularity=PerChannel(0)), w).eval()
    assert quantizer.grid().scheme.levels == (-1, 0, 1)
    y = quantizer(w * 3)
    grid = quantizer.grid()
    assert torch.equal(grid.scale, y.abs().amax(1))
    assert torch.equal(grid.dequantize(grid.quantize(y)), y)


def test_groups_powers_of_two_and_zeros() -> None:
    w = torch.randn(3, 8)
    assert calibrated(Twn(), Scheme(bits=2, granularity=PerGroup(1, 4)), w)(w).shape == w.shape
    two = torch.tensor([0.3, -0.3, 0.0])
    assert calibrated(Twn(), Scheme(bits=2, scale=PowerOfTwo()), two)(two).tolist() == [0.25, -0.25, 0.0]
    quantizer = calibrated(Twn(), Scheme(bits=2), w)
    assert torch.equal(quantizer(torch.zeros(3, 8)), torch.zeros(3, 8))
    assert quantizer.grid().scale > 0


def test_training_the_weights_finds_a_sparse_teacher() -> None:
    torch.manual_seed(0)
    x, teacher = torch.randn(256, 21), torch.tensor([-0.5, 0.0, 0.5]).repeat(7)[:, None]
    w = torch.randn(21, 1).requires_grad_()
    quantizer = calibrated(Twn(), Scheme(bits=2), w.detach())
    optimizer = torch.optim.Adam([w], lr=0.02)
    losses = []
    for _ in range(400):
        optimizer.zero_grad()
        loss = (x @ quantizer(w) - x @ teacher).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.05 * losses[0]
    assert torch.equal(quantizer(w).sign(), teacher.sign())


def test_weights_that_are_not_numbers_stay_so() -> None:
    """A diverged network shows it, instead of going on with some level."""
    x = torch.randn(9)
    quantizer = calibrated(Twn(), Scheme(bits=2), x)
    assert quantizer(torch.where(x > 0, float("nan"), x)).isnan().any()


@pytest.mark.parametrize(
    "scheme, role, message",
    [
        (Scheme(bits=2), "activation", "weights only"),
        (Scheme(bits=4), "weight", "2 bits, not 4"),
        (Scheme(bits=2, signed=False), "weight", "signed, symmetric"),
        (Scheme(bits=2, symmetric=False), "weight", "signed, symmetric"),
        (Scheme(bits=2, grid=MidRise()), "weight", "uniform grid"),
    ],
)
def test_schemes_that_twn_cannot_express_are_refused(scheme: Scheme, role: Role, message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        Twn().build(scheme, role=role)


@pytest.mark.parametrize("threshold", [-0.1, 1.0])
def test_a_threshold_that_keeps_nothing_is_refused(threshold: float) -> None:
    with pytest.raises(SettingError, match=r"\[0, 1\)"):
        Twn(threshold=threshold)


@pytest.mark.filterwarnings("ignore")  # the compiler's own warnings
def test_compiled_and_exported_give_the_eager_values() -> None:
    w = torch.randn(6, 9)
    quantizer = calibrated(Twn(), Scheme(bits=2, granularity=PerChannel(0)), w)
    assert torch.equal(torch.compile(quantizer, backend="eager", fullgraph=True)(w), quantizer(w))
    program = torch.export.export(quantizer.eval(), (w,))
    assert torch.equal(program.module()(w), quantizer(w))
