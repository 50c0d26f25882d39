"""BWN: its scale is the best one, its two gradients, and what it refuses."""

import pytest
import torch

from isobit.core.errors import SettingError, UnsupportedError
from isobit.core.granularity import PerChannel, PerGroup
from isobit.core.grid import PowersOfTwo
from isobit.core.scheme import PowerOfTwo, Scheme
from isobit.observers import OBSERVERS
from isobit.quantizers.bwn import Bwn, BwnQuantizer
from isobit.quantizers.protocol import Role
from quantizers.calibrating import observed


def calibrated(settings: Bwn, scheme: Scheme, w: torch.Tensor) -> BwnQuantizer:
    return observed(settings.build(scheme, role="weight"), OBSERVERS[Bwn.observer](), w)


def test_no_other_scale_and_sign_come_closer_to_the_filter() -> None:
    """The claim of section 3.1, against all sign patterns and a fine row of scales."""
    torch.manual_seed(0)
    w = torch.randn(2, 6)
    y = calibrated(Bwn(), Scheme(bits=1, granularity=PerChannel(0)), w)(w)
    patterns = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 6)
    scales = torch.linspace(0, 3, 3001)
    for row, mine in zip(w, y, strict=True):
        others = ((scales[:, None, None] * patterns - row) ** 2).sum(2).min()
        assert ((mine - row) ** 2).sum() <= others + 1e-6


def test_the_scale_is_known_from_calibration_on() -> None:
    w = torch.randn(7, 5, 3, 3) * 0.1
    quantizer = calibrated(Bwn(), Scheme(bits=1, granularity=PerChannel(0)), w)
    expected = w.abs().mean((1, 2, 3))
    torch.testing.assert_close(quantizer.grid().scale, expected)
    quantizer(w)
    torch.testing.assert_close(quantizer.grid().scale, expected)


def test_the_declared_scale_follows_the_weights() -> None:
    w = torch.randn(4, 9)
    quantizer = calibrated(Bwn(), Scheme(bits=1), w).eval()
    y, grid = quantizer(w * 3), quantizer.grid()
    assert grid.scale.item() == pytest.approx(3 * w.abs().mean().item(), rel=1e-6)
    assert torch.equal(grid.dequantize(grid.quantize(y)), y)


def test_zero_is_positive() -> None:
    w = torch.tensor([0.0, -0.0, -2.0, 2.0])
    assert calibrated(Bwn(), Scheme(bits=1), w)(w).tolist() == [1.0, 1.0, -1.0, 1.0]
    assert torch.isfinite(calibrated(Bwn(), Scheme(bits=1), w)(torch.zeros(4))).all()


def test_groups_have_their_own_scale() -> None:
    w = torch.randn(3, 8)
    y = calibrated(Bwn(), Scheme(bits=1, granularity=PerGroup(1, 4)), w)(w)
    torch.testing.assert_close(y.abs()[:, ::4], w.abs().reshape(3, 2, 4).mean(2))


def test_a_power_of_two_scale() -> None:
    w = torch.tensor([0.3, -0.3])
    assert calibrated(Bwn(), Scheme(bits=1, scale=PowerOfTwo()), w)(w).tolist() == [0.25, -0.25]


def test_the_gradient_of_the_paper_stops_outside_one() -> None:
    w = torch.tensor([0.5, -0.5, 2.0, -3.0], requires_grad=True)
    alpha, n = 1.5, 4
    for settings, expected in [
        (Bwn(), [1.0, 1.0, 1.0, 1.0]),
        (Bwn(gradient="xnor"), [1 / n + alpha, 1 / n + alpha, 1 / n, 1 / n]),
    ]:
        (grad,) = torch.autograd.grad(calibrated(settings, Scheme(bits=1), w.detach())(w).sum(), w)
        assert grad.tolist() == expected


@pytest.mark.parametrize("gradient", ["straight_through", "xnor"])
def test_training_the_weights_fits_a_binary_teacher(gradient: str) -> None:
    torch.manual_seed(0)
    x, teacher = torch.randn(256, 20), torch.randn(20, 1).sign() * 0.3
    w = (torch.randn(20, 1) * 0.3).requires_grad_()
    quantizer = calibrated(Bwn(gradient=gradient), Scheme(bits=1), w.detach())  # type: ignore[arg-type]
    optimizer = torch.optim.Adam([w], lr=0.01)
    losses = []
    for _ in range(300):
        optimizer.zero_grad()
        loss = (x @ quantizer(w) - x @ teacher).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]
    assert torch.equal(quantizer(w).sign(), teacher.sign())


def test_weights_that_are_not_numbers_stay_so() -> None:
    """A diverged network shows it, instead of going on with some level."""
    x = torch.randn(9)
    quantizer = calibrated(Bwn(), Scheme(bits=1), x)
    assert quantizer(torch.where(x > 0, float("nan"), x)).isnan().any()


@pytest.mark.parametrize(
    "scheme, role, message",
    [
        (Scheme(bits=1), "activation", "weights only"),
        (Scheme(bits=2), "weight", "1 bit, not 2"),
        (Scheme(bits=1, signed=False), "weight", "signed, symmetric"),
        (Scheme(bits=1, symmetric=False), "weight", "signed, symmetric"),
        (Scheme(bits=1, grid=PowersOfTwo()), "weight", "takes the sign"),
    ],
)
def test_schemes_that_bwn_cannot_express_are_refused(scheme: Scheme, role: Role, message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        Bwn().build(scheme, role=role)


def test_an_unknown_gradient_is_refused() -> None:
    with pytest.raises(SettingError, match="'straight_through' or 'xnor'"):
        Bwn(gradient="xor")  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore")  # the compiler's own warnings
def test_compiled_and_exported_give_the_eager_values() -> None:
    w = torch.randn(6, 9)
    quantizer = calibrated(Bwn(gradient="xnor"), Scheme(bits=1, granularity=PerChannel(0)), w)
    assert torch.equal(torch.compile(quantizer, backend="eager", fullgraph=True)(w), quantizer(w))
    program = torch.export.export(quantizer.eval(), (w,))
    assert torch.equal(program.module()(w), quantizer(w))
