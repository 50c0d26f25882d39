"""LSQ against the formulas of its paper, in float64."""

import math

import pytest
import torch

from isobit.core.errors import UnsupportedError
from isobit.core.granularity import PerChannel
from isobit.core.grid import PowersOfTwo
from isobit.core.qparams import QParams
from isobit.core.scheme import PowerOfTwo, Scheme
from isobit.quantizers import Lsq


def quantizer(scheme: Scheme, scale: torch.Tensor, *, role: str, damp: bool = True) -> torch.nn.Module:
    built = Lsq(damp=damp).build(scheme, role=role)  # type: ignore[arg-type]
    built.calibrate(QParams(scale, torch.zeros_like(scale, dtype=torch.int32), scheme))
    return built.double()


def equation_3(v: torch.Tensor, low: int, high: int) -> torch.Tensor:
    inside = v.round() - v
    return torch.where(v <= low, float(low), torch.where(v >= high, float(high), inside))


@pytest.mark.parametrize("role, count", [("weight", 8 * 27), ("activation", 27)])
def test_gradient_to_the_scale_is_equation_3_times_g(role: str, count: int) -> None:
    torch.manual_seed(0)
    x, upstream = torch.randn(8, 27, dtype=torch.float64), torch.randn(8, 27, dtype=torch.float64)
    q = quantizer(Scheme(bits=4), torch.tensor(0.25), role=role)
    (grad,) = torch.autograd.grad(q(x), q.scale, upstream)
    g = 1 / math.sqrt(count * 7)
    torch.testing.assert_close(grad, (upstream * equation_3(x / 0.25, -8, 7)).sum() * g)


def test_per_channel_scales_have_their_own_filter_as_n() -> None:
    x, upstream = torch.randn(8, 27, dtype=torch.float64), torch.randn(8, 27, dtype=torch.float64)
    scale = torch.rand(8) * 0.2 + 0.1
    q = quantizer(Scheme(bits=4, granularity=PerChannel(0)), scale, role="weight")
    (grad,) = torch.autograd.grad(q(x), q.scale, upstream)
    expected = (upstream * equation_3(x / scale.double()[:, None], -8, 7)).sum(1) / math.sqrt(27 * 7)
    torch.testing.assert_close(grad, expected)


def test_without_damping_g_is_one() -> None:
    x = torch.randn(8, 27, dtype=torch.float64)
    q = quantizer(Scheme(bits=2, signed=False), torch.tensor(0.5), role="activation", damp=False)
    (grad,) = torch.autograd.grad(q(x).sum(), q.scale)
    torch.testing.assert_close(grad, equation_3(x / 0.5, 0, 3).sum())


def test_a_power_of_two_scale_is_rounded_and_still_learns() -> None:
    q = quantizer(Scheme(bits=4, scale=PowerOfTwo()), torch.tensor(0.3), role="weight", damp=False)
    assert q.grid().scale.item() == 0.25
    x = torch.randn(50, dtype=torch.float64)
    (grad,) = torch.autograd.grad(q(x).sum(), q.scale)
    torch.testing.assert_close(grad, equation_3(x / 0.25, -8, 7).sum())


def test_a_scale_that_crosses_zero_stays_usable() -> None:
    q = quantizer(Scheme(bits=4), torch.tensor(0.25), role="weight")
    q.scale.data = torch.tensor(-0.25, dtype=torch.float64)
    assert q.grid().scale.item() == 0.25


@pytest.mark.parametrize("scheme", [Scheme(bits=1), Scheme(bits=4, grid=PowersOfTwo())])
def test_schemes_that_lsq_cannot_express_are_refused(scheme: Scheme) -> None:
    with pytest.raises(UnsupportedError):
        Lsq().build(scheme)
