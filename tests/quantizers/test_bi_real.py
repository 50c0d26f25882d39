"""Bi-Real Net: the gradient's area, its scale, and what it refuses."""

import pytest
import torch

from isobit.core.errors import UnsupportedError
from isobit.core.granularity import PerChannel
from isobit.core.grid import PowersOfTwo
from isobit.core.scheme import PowerOfTwo, Scheme
from isobit.observers import OBSERVERS
from isobit.quantizers.bi_real import BiReal, BiRealQuantizer
from isobit.quantizers.protocol import Role
from quantizers.calibrating import observed


def calibrated(scheme: Scheme, x: torch.Tensor, *, role: Role) -> BiRealQuantizer:
    return observed(BiReal().build(scheme, role=role), OBSERVERS[BiReal.observer](), x)


def test_the_gradient_of_activations_is_the_slope_of_a_spline_from_minus_one_to_one() -> None:
    quantizer = calibrated(Scheme(bits=1), torch.randn(9), role="activation").double()
    x = torch.linspace(-2, 2, 4001, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(quantizer(x).sum(), x)
    rise = (slope.cumsum(0) * 0.001 - 1).detach()
    u = x.detach()
    spline = torch.where(u < 0, 2 * u + u * u, 2 * u - u * u)
    torch.testing.assert_close(rise, torch.where(u.abs() < 1, spline, u.sign()), atol=2e-3, rtol=0)


def test_activations_are_signs_whatever_calibration_saw() -> None:
    x = torch.tensor([-3.0, -0.0, 0.0, 5.0])
    for seen in (x, x.abs()):
        quantizer = calibrated(Scheme(bits=1, adapt_sign=True), seen, role="activation")
        assert quantizer(x).tolist() == [-1.0, 1.0, 1.0, 1.0]
        assert torch.equal(quantizer.grid().fake_quantize(x), quantizer(x))


def test_weights_have_the_mean_magnitude_of_their_filter() -> None:
    w = torch.randn(7, 5, 3, 3) * 0.1
    quantizer = calibrated(Scheme(bits=1, granularity=PerChannel(0)), w, role="weight")
    torch.testing.assert_close(quantizer.grid().scale, w.abs().mean((1, 2, 3)))
    y = quantizer(w)
    torch.testing.assert_close(y, w.sign() * w.abs().mean((1, 2, 3), keepdim=True))
    assert torch.equal(quantizer.grid().scale, y[:, 0, 0, 0].abs())


def test_the_gradient_of_weights_knows_their_magnitude() -> None:
    """Halving all weights halves the gradient: the relative step to a change of sign stays the same."""
    w = torch.randn(5, 5, dtype=torch.float64) * 0.2
    gradients = []
    for factor in (1.0, 0.5):
        scaled = (w * factor).requires_grad_()
        quantizer = calibrated(Scheme(bits=1), scaled.detach(), role="weight").double()
        gradients.append(torch.autograd.grad(quantizer(scaled).sum(), scaled)[0])
    torch.testing.assert_close(gradients[1], gradients[0] / 2)


def test_a_power_of_two_scale() -> None:
    w = torch.tensor([0.3, -0.3])
    assert calibrated(Scheme(bits=1, scale=PowerOfTwo()), w, role="weight")(w).tolist() == [0.25, -0.25]


def test_training_fits_a_binary_teacher() -> None:
    torch.manual_seed(0)
    x, teacher = torch.randn(256, 20), torch.tensor([-0.4, 0.4]).repeat(10)[:, None]
    target = x.sign() @ teacher
    w = (torch.randn(20, 1) * 0.3).requires_grad_()
    weight = calibrated(Scheme(bits=1), w.detach(), role="weight")
    activation = calibrated(Scheme(bits=1), x, role="activation")
    optimizer = torch.optim.Adam([w], lr=0.01)
    losses = []
    for _ in range(300):
        optimizer.zero_grad()
        loss = (activation(x) @ weight(w) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.05 * losses[0]
    assert torch.equal(weight(w).sign(), teacher.sign())


def test_activations_that_are_not_numbers_stay_so() -> None:
    """A diverged network shows it, instead of going on with some level."""
    x = torch.randn(9)
    quantizer = calibrated(Scheme(bits=1), x, role="activation")
    assert quantizer(torch.where(x > 0, float("nan"), x)).isnan().any()


@pytest.mark.parametrize(
    "scheme, role, message",
    [
        (Scheme(bits=2), "weight", "1 bit, not 2"),
        (Scheme(bits=1, signed=False), "activation", "signed, symmetric"),
        (Scheme(bits=1, symmetric=False), "weight", "signed, symmetric"),
        (Scheme(bits=1, grid=PowersOfTwo()), "weight", "takes the sign"),
    ],
)
def test_schemes_that_bi_real_cannot_express_are_refused(scheme: Scheme, role: Role, message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        BiReal().build(scheme, role=role)


@pytest.mark.filterwarnings("ignore")  # the compiler's own warnings
def test_compiled_and_exported_give_the_eager_values() -> None:
    x = torch.randn(6, 9)
    quantizer = calibrated(Scheme(bits=1), x, role="activation").eval()
    assert torch.equal(torch.compile(quantizer, backend="eager", fullgraph=True)(x), quantizer(x))
    program = torch.export.export(quantizer, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    assert torch.equal(program.module()(x[:4]), quantizer(x[:4]))
    weight = calibrated(Scheme(bits=1, granularity=PerChannel(0)), x, role="weight")
    assert torch.equal(torch.compile(weight, backend="eager", fullgraph=True)(x), weight(x))
