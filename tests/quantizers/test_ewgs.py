"""EWGS: the sign of its scaling, the paper's weights, δ from a Hessian, refusals."""

import math

import pytest
import torch
from torch import Tensor, nn

from isobit.core.errors import CalibrationError, SettingError, UnsupportedError
from isobit.core.granularity import PerChannel
from isobit.core.grid import MidRise, PowersOfTwo, Uniform
from isobit.core.qparams import qparams_of_range
from isobit.core.scheme import PowerOfTwo, Scheme
from isobit.observers import MeanStd
from isobit.quantizers.ewgs import Ewgs, EwgsQuantizer, hessian_diagonal
from isobit.quantizers.protocol import Role
from quantizers.closed_forms.ewgs import CASES, expected

ASYMMETRIC = Scheme(bits=4, signed=False, symmetric=False)


def calibrated(
    scheme: Scheme, low: float, high: float, *, role: Role = "activation", delta: float = 1e-3
) -> EwgsQuantizer:
    quantizer = Ewgs(delta=delta).build(scheme, role=role)
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


@pytest.mark.parametrize("scheme", [Scheme(bits=3), ASYMMETRIC, Scheme(bits=2, scale=PowerOfTwo())])
def test_activations_are_what_the_declared_integers_give(scheme: Scheme) -> None:
    x = torch.cat([torch.randn(4096), torch.arange(-64, 65) / 32])
    quantizer = calibrated(scheme, -1.1, 1.3)
    quantizer.upper.data *= 1.07
    y, grid = quantizer(x).detach(), quantizer.grid()
    assert torch.equal(y, grid.fake_quantize(x))
    assert torch.equal(y, grid.dequantize(grid.quantize(x)))


@pytest.mark.parametrize("bits, grid", [(1, MidRise()), (2, MidRise()), (4, MidRise()), (8, Uniform())])
def test_weights_lie_on_the_declared_grid_whatever_the_output_scale(bits: int, grid: MidRise | Uniform) -> None:
    quantizer, w = calibrated(Scheme(bits=bits), -1.0, 1.0, role="weight"), torch.randn(4096)
    quantizer.output_scale.data = torch.tensor(-0.37)  # type: ignore[union-attr]
    y, declared = quantizer(w).detach(), quantizer.grid()
    assert declared.scheme.grid == grid
    assert torch.equal(declared.fake_quantize(y), y)
    assert y.abs().max().item() == pytest.approx(0.37, rel=0.01)
    assert bool((y[w > 0.6] > 0).all())


def test_the_gradient_grows_where_it_pushes_against_the_rounding_error() -> None:
    """With g > 0 the update lowers x: above its level (x_n > x_q) it takes a larger step than below."""
    quantizer = calibrated(Scheme(bits=4, signed=False), 0.0, 15.0, delta=0.6)
    x = torch.tensor([3.25, 2.75], requires_grad=True)
    (grad,) = torch.autograd.grad(quantizer(x).sum(), x)
    torch.testing.assert_close(grad, torch.tensor([1 + 0.6 * 0.25 / 15, 1 - 0.6 * 0.25 / 15]))
    (grad,) = torch.autograd.grad(-quantizer(x).sum(), x)
    torch.testing.assert_close(grad, -torch.tensor([1 - 0.6 * 0.25 / 15, 1 + 0.6 * 0.25 / 15]))


def test_weights_start_at_three_standard_deviations() -> None:
    w = 0.1 * torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    quantizer = Ewgs().build(Scheme(bits=2), role="weight")
    observer = MeanStd().build(quantizer.scheme)
    observer.see(w)
    quantizer.calibrate(observer.qparams())
    assert quantizer.upper.item() == pytest.approx(3 * w.std().item(), rel=0.01)
    assert quantizer.lower.item() == -quantizer.upper.item()  # type: ignore[union-attr]
    assert quantizer.output_scale.item() == quantizer.upper.item()  # type: ignore[union-attr]


def test_delta_follows_the_hessian_of_a_quadratic() -> None:
    """L = Σ h (y - c)² / 2 has the Hessian diag(h) and the gradient h (y - c), whatever the probes."""
    generator = torch.Generator().manual_seed(0)
    h, c = torch.rand(500, generator=generator) + 0.5, torch.randn(500, generator=generator)
    quantizer = calibrated(Scheme(bits=2), -1.0, 1.0, role="weight")
    y = quantizer(torch.randn(500, generator=generator))
    (gradient,) = torch.autograd.grad((h * (y - c).square()).sum() / 2, y, create_graph=True)
    diagonal = hessian_diagonal(gradient, y, probes=3)
    torch.testing.assert_close(diagonal, h)
    quantizer.update_delta(gradient, diagonal)
    width = 2 * quantizer.output_scale.item()  # type: ignore[union-attr]
    wanted = width**2 * h.mean() / (3 * width * (h * (y - c)).std())
    assert quantizer.delta.item() == pytest.approx(wanted.item(), rel=1e-5)


def test_a_negative_curvature_gives_the_straight_through_estimator() -> None:
    quantizer = calibrated(Scheme(bits=4, signed=False), 0.0, 1.0)
    quantizer.update_delta(torch.randn(8, 4), -torch.ones(8, 4))
    assert quantizer.delta.item() == 0
    with pytest.raises(CalibrationError, match="gradient that varies"):
        quantizer.update_delta(torch.zeros(8, 4), torch.ones(8, 4))


def test_a_hessian_passes_through_the_quantizers_above() -> None:
    torch.manual_seed(0)
    first = calibrated(Scheme(bits=2), -1.0, 1.0, role="weight")
    act = calibrated(Scheme(bits=4, signed=False), 0.0, 3.0)
    second = calibrated(Scheme(bits=2), -1.0, 1.0, role="weight")
    w1, w2, x, target = torch.randn(8, 6), torch.randn(3, 8), torch.randn(64, 6), torch.randint(3, (64,))

    quantized = first(w1.requires_grad_())

    def gradient_at(w: Tensor) -> Tensor:
        hidden = act(nn.functional.linear(x, w).relu())
        loss = nn.functional.cross_entropy(nn.functional.linear(hidden, second(w2)), target)
        return torch.autograd.grad(loss, w, create_graph=True)[0]

    gradient = gradient_at(quantized)
    diagonal = hessian_diagonal(gradient, quantized, probes=400)
    exact = torch.stack(
        [torch.autograd.grad(g, quantized, retain_graph=True)[0].flatten()[i] for i, g in enumerate(gradient.flatten())]
    )
    assert exact.sum().abs() > 0.01
    assert diagonal.sum().item() == pytest.approx(exact.sum().item(), rel=0.15)
    first.update_delta(gradient, diagonal)
    assert math.isfinite(first.delta.item())


def test_learning_the_range_reduces_the_error() -> None:
    x = nn.functional.silu(2 * torch.randn(4096, generator=torch.Generator().manual_seed(0)))
    quantizer = calibrated(ASYMMETRIC, x.min().item(), x.max().item())
    before = (quantizer(x) - x).square().mean().item()
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=0.01)
    for _ in range(300):
        optimizer.zero_grad()
        (quantizer(x) - x).square().mean().backward()
        optimizer.step()
    assert (quantizer(x) - x).square().mean().item() < 0.8 * before


def test_a_sign_that_depends_on_data_is_settled_and_survives_a_checkpoint() -> None:
    x, scheme = torch.rand(4, 50), Scheme(bits=1, adapt_sign=True)
    quantizer, fresh = calibrated(scheme, 0.0, 1.0, delta=0.25), Ewgs().build(scheme)
    assert not quantizer.grid().scheme.signed
    fresh.load_state_dict(quantizer.state_dict())
    assert fresh.grid().scheme == quantizer.grid().scheme
    assert fresh.delta.item() == 0.25
    assert torch.equal(fresh(x), quantizer(x))
    with pytest.raises(CalibrationError, match="1 signed bit"):
        calibrated(scheme, -1.0, 1.0)


@pytest.mark.filterwarnings("ignore")  # the compiler's own warnings
@pytest.mark.parametrize("scheme, role", [(ASYMMETRIC, "activation"), (Scheme(bits=2), "weight")])
def test_compiled_and_exported_with_a_dynamic_batch_it_computes_the_same(scheme: Scheme, role: Role) -> None:
    x = torch.randn(8, 64)
    quantizer = calibrated(scheme, -1.0, 2.0, role=role)
    y = quantizer(x)
    assert torch.equal(torch.compile(quantizer, backend="eager", fullgraph=True)(x), y)
    exported = torch.export.export(quantizer, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},)).module()
    assert torch.equal(exported(x), y)
    assert torch.equal(exported(x[:3]), y[:3])


@pytest.mark.parametrize(
    "scheme, role, message",
    [
        (Scheme(bits=4, grid=PowersOfTwo()), "weight", "equal steps"),
        (Scheme(bits=4, signed=False), "weight", "both sides of 0"),
        (Scheme(bits=4, grid=MidRise()), "activation", "level at 0"),
        (Scheme(bits=1), "activation", "1 signed bit"),
    ],
)
def test_schemes_that_it_cannot_express_are_refused(scheme: Scheme, role: Role, message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        Ewgs().build(scheme, role=role)


def test_weights_are_symmetric_where_the_target_would_take_a_zero_point() -> None:
    assert Ewgs().build(Scheme(symmetric=False), role="weight").scheme == Scheme()
    assert Ewgs().build(Scheme(bits=4, symmetric=False), role="weight").scheme == Scheme(bits=4, grid=MidRise())


def test_settings_that_contradict_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="mid_rise"):
        Ewgs(mid_rise=False).build(Scheme(bits=1), role="weight")
    with pytest.raises(SettingError, match="delta"):
        Ewgs(delta=-1.0)
