"""DSQ: its gradient between hard and straight-through, ranges, the learned α, refusals."""

import math

import pytest
import torch
from torch import Tensor

from isobit.core.errors import SettingError, UnsupportedError
from isobit.core.granularity import PerChannel
from isobit.core.grid import MidRise, PowersOfTwo
from isobit.core.qparams import QParams, qparams_of_range
from isobit.core.scheme import PowerOfTwo, Scheme
from isobit.quantizers.dsq import Dsq, DsqQuantizer
from quantizers.closed_forms.dsq import CASES, expected

ASYMMETRIC = Scheme(bits=4, signed=False, symmetric=False)


def calibrated(settings: Dsq, scheme: Scheme, low: float, high: float) -> DsqQuantizer:
    quantizer = settings.build(scheme)
    quantizer.calibrate(qparams_of_range(torch.tensor(low), torch.tensor(high), quantizer.scheme))
    return quantizer


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_the_paper(case: str) -> None:
    torch.manual_seed(1)
    settings, scheme, role = CASES[case]
    x = torch.randn(6, 8, 5, dtype=torch.float64)
    quantizer = settings.build(scheme, role=role)
    axis = scheme.granularity.axis if isinstance(scheme.granularity, PerChannel) else None
    dims = [d for d in range(3) if d != axis]
    quantizer.calibrate(  # type: ignore[operator]
        qparams_of_range(0.4 * x.amin(dims), 0.4 * x.amax(dims), quantizer.scheme)  # type: ignore[arg-type]
    )
    quantizer.double()
    for parameter in quantizer.parameters():
        parameter.data *= 1 + 0.1 * torch.rand_like(parameter)
    x.requires_grad_()
    upstream = torch.randn_like(x)
    y = quantizer(x)
    names = dict(quantizer.named_parameters())
    found = dict(zip(["x", *names], torch.autograd.grad(y, [x, *names.values()], upstream), strict=True))
    wanted = expected(quantizer, x.detach(), upstream)  # type: ignore[arg-type]
    torch.testing.assert_close(y.detach(), wanted.pop("output"), rtol=1e-12, atol=1e-12)
    assert found.keys() == wanted.keys()
    for name, grad in found.items():
        torch.testing.assert_close(grad, wanted[name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("scheme", [Scheme(bits=3), Scheme(bits=1), ASYMMETRIC, Scheme(bits=2, scale=PowerOfTwo())])
def test_what_is_computed_is_what_the_declared_integers_give(scheme: Scheme) -> None:
    x = torch.cat([torch.randn(4096), torch.arange(-64, 65) / 32])
    quantizer = calibrated(Dsq(), scheme, -1.1, 1.3)
    quantizer.upper.data *= 1.07
    y, grid = quantizer(x).detach(), quantizer.grid()
    assert torch.equal(y, grid.fake_quantize(x))
    assert torch.equal(y, grid.dequantize(grid.quantize(x)))
    assert y.unique().numel() == 2**scheme.bits


def test_one_signed_bit_is_the_sign_times_the_range() -> None:
    quantizer = calibrated(Dsq(), Scheme(bits=1), -0.7, 0.7)
    assert quantizer.grid().scheme.grid == MidRise()
    torch.testing.assert_close(quantizer(torch.tensor([-2.0, -0.1, 0.1, 2.0])), torch.tensor([-0.7, -0.7, 0.7, 0.7]))


@pytest.mark.parametrize("alpha", [0.1, 0.2, 0.4])
def test_between_two_levels_the_gradient_integrates_to_one_step(alpha: float) -> None:
    """Q_S is continuous from level to level: the scale s = 1 / (1 - α) is chosen so."""
    quantizer = calibrated(Dsq(alpha=alpha), Scheme(bits=4), -7.0, 7.0).double()
    x = ((torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000 + 2).requires_grad_()
    (grad,) = torch.autograd.grad(quantizer(x).sum(), x)
    assert grad.mean().item() == pytest.approx(1, abs=1e-8)
    peak = 0.5 * math.log(2 / alpha - 1) / (1 - alpha)
    assert grad.max().item() == pytest.approx(peak, rel=1e-6)
    assert x[grad.argmax()].item() == pytest.approx(2.5, abs=1e-4)


def test_towards_alpha_1_the_gradient_is_straight_through() -> None:
    quantizer = calibrated(Dsq(alpha=0.99), Scheme(bits=4), -7.0, 7.0)
    x = torch.linspace(-6.9, 6.9, 200, requires_grad=True)
    (grad,) = torch.autograd.grad(quantizer(x).sum(), x)
    torch.testing.assert_close(grad, torch.ones_like(grad), rtol=0, atol=1e-4)


def test_the_penalty_lowers_alpha_and_alpha_stays_usable_below_0() -> None:
    quantizer = calibrated(Dsq(alpha_penalty=0.5), Scheme(bits=4), -1.0, 1.0)
    assert quantizer.penalty().item() == pytest.approx(0.5 * 0.2**2)
    (grad,) = torch.autograd.grad(quantizer.penalty(), quantizer.alpha)
    assert grad.item() == pytest.approx(2 * 0.5 * 0.2)
    quantizer.alpha.data = torch.tensor(-0.3)
    x = torch.randn(100, requires_grad=True)
    (grad,) = torch.autograd.grad(quantizer(x).sum(), x)
    assert bool(grad.isfinite().all())


def test_it_starts_at_the_observed_range() -> None:
    quantizer = Dsq().build(ASYMMETRIC)
    quantizer.calibrate(QParams(torch.tensor(0.25), torch.tensor(3, dtype=torch.int32), ASYMMETRIC))
    assert (quantizer.lower.item(), quantizer.upper.item()) == (-0.75, 3.0)  # type: ignore[union-attr]
    assert (quantizer.grid().scale.item(), quantizer.grid().zero_point.item()) == (0.25, 3)


def test_learning_the_range_reduces_the_error() -> None:
    x = torch.nn.functional.silu(2 * torch.randn(4096, generator=torch.Generator().manual_seed(0)))
    quantizer = calibrated(Dsq(alpha=0.4, learn_alpha=False), ASYMMETRIC, x.min().item(), x.max().item())
    before = (quantizer(x) - x).square().mean().item()
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=0.01)
    for _ in range(300):
        optimizer.zero_grad()
        (quantizer(x) - x).square().mean().backward()
        optimizer.step()
    assert (quantizer(x) - x).square().mean().item() < 0.8 * before


@pytest.mark.parametrize("bits", [1, 4])
def test_a_sign_that_depends_on_data_is_settled_and_survives_a_checkpoint(bits: int) -> None:
    x, scheme = torch.rand(4, 50), Scheme(bits=bits, adapt_sign=True)
    quantizer, fresh = calibrated(Dsq(), scheme, 0.0, 1.0), Dsq().build(scheme)
    assert not quantizer.grid().scheme.signed
    fresh.load_state_dict(quantizer.state_dict())
    assert fresh.grid().scheme == quantizer.grid().scheme
    assert torch.equal(fresh(x), quantizer(x))


@pytest.mark.filterwarnings("ignore")  # the compiler's own warnings
@pytest.mark.parametrize("scheme", [ASYMMETRIC, Scheme(bits=1)])
def test_compiled_and_exported_with_a_dynamic_batch_it_computes_the_same(scheme: Scheme) -> None:
    x = torch.randn(8, 64)
    quantizer = calibrated(Dsq(), scheme, -1.0, 2.0)
    y = quantizer(x)
    assert torch.equal(torch.compile(quantizer, backend="eager", fullgraph=True)(x), y)
    exported = torch.export.export(quantizer, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},)).module()
    assert torch.equal(exported(x), y)
    assert torch.equal(exported(x[:3]), y[:3])


def test_what_it_cannot_express_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="equal steps"):
        Dsq().build(Scheme(bits=4, grid=PowersOfTwo()))
    with pytest.raises(SettingError, match=r"alpha has to be between 0\.01 and 0\.99"):
        Dsq(alpha=0.0)
    with pytest.raises(SettingError, match="alpha_penalty"):
        Dsq(alpha_penalty=-1.0)


def test_a_range_of_one_point_still_gives_a_scale() -> None:
    quantizer = calibrated(Dsq(), ASYMMETRIC, -1.0, 1.0)
    quantizer.upper.data = quantizer.lower.data.clone()  # type: ignore[union-attr]
    y: Tensor = quantizer(torch.randn(10))
    assert bool(y.isfinite().all())
