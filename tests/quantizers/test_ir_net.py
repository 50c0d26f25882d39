"""IR-Net: balanced weights, the schedule of its gradient, and what it refuses."""

import math

import pytest
import torch

from isobit.core.errors import SettingError, UnsupportedError
from isobit.core.granularity import PerChannel, PerGroup
from isobit.core.grid import PowersOfTwo
from isobit.core.scheme import PowerOfTwo, Scheme
from isobit.observers import OBSERVERS
from isobit.quantizers.ir_net import IrNet, IrNetQuantizer
from isobit.quantizers.protocol import Role
from quantizers.calibrating import observed


def calibrated(settings: IrNet, scheme: Scheme, x: torch.Tensor, *, role: Role) -> IrNetQuantizer:
    return observed(settings.build(scheme, role=role), OBSERVERS[IrNet.observer](), x)


def entropy(signs: torch.Tensor) -> float:
    p = (signs > 0).double().mean().item()
    return -sum(q * math.log2(q) for q in (p, 1 - p) if q > 0)


def test_shifted_weights_keep_one_bit_of_information() -> None:
    """The aim of section 3.2: a plain sign of weights with a mean of 2 deviations holds a seventh of a bit."""
    torch.manual_seed(0)
    w = torch.randn(8, 2000) + 2
    y = calibrated(IrNet(), Scheme(bits=1, granularity=PerChannel(0)), w, role="weight")(w)
    assert entropy(w) < 0.2
    assert all(entropy(row) > 0.999 for row in y)


def test_scales_are_powers_of_two_near_the_mean_magnitude() -> None:
    torch.manual_seed(0)
    normal = torch.randn(1, 4000)  # mean|ŵ| = 0.80
    peaked = torch.cat([torch.full((1, 3990), 1e-3), torch.full((1, 5), 1.0), torch.full((1, 5), -1.0)], 1)
    w = torch.cat([normal, peaked])
    quantizer = calibrated(IrNet(), Scheme(bits=1, granularity=PerChannel(0)), w, role="weight")
    quantizer(w)
    centred = peaked - peaked.mean()
    size = (centred / centred.std()).abs().mean().item()
    assert quantizer.grid().scale.tolist() == [1.0, 2.0 ** round(math.log2(size))]
    assert size < 0.1
    assert isinstance(quantizer.grid().scheme.scale, PowerOfTwo)


def test_the_schedule_runs_from_soft_to_sharp() -> None:
    quantizer = calibrated(IrNet(), Scheme(bits=1), torch.randn(9), role="activation")
    assert quantizer.t.item() == pytest.approx(0.1)
    for progress, t in [(0.0, 0.1), (0.25, 10**-0.5), (0.5, 1.0), (1.0, 10.0)]:
        quantizer.advance(progress)
        assert quantizer.t.item() == pytest.approx(t)
        assert quantizer.state_dict()["t"].item() == pytest.approx(t)


def slope(quantizer: IrNetQuantizer, x: torch.Tensor) -> torch.Tensor:
    x = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(quantizer(x).sum(), x)
    return grad


def test_the_gradient_goes_from_the_identity_to_that_of_the_sign() -> None:
    quantizer = calibrated(IrNet(), Scheme(bits=1), torch.randn(9), role="activation").double()
    x = torch.linspace(-4, 4, 8001, dtype=torch.float64)
    near = slope(quantizer, x[(x.abs() < 1)])
    assert near.min() > 0.99 and near.max() <= 1
    quantizer.advance(1.0)
    late = slope(quantizer, x)
    assert late.max().item() == pytest.approx(10.0)
    assert late[x.abs() > 1].max() < 1e-6
    assert (late.sum() * 0.001).item() == pytest.approx(2.0, rel=1e-4)  # it rises by 2, as sign does


def test_calibration_decides_nothing_for_activations() -> None:
    x = torch.tensor([-3.0, -0.0, 0.0, 5.0])
    for seen in (x, x.abs()):
        quantizer = calibrated(IrNet(), Scheme(bits=1, adapt_sign=True), seen, role="activation")
        assert quantizer(x).tolist() == [-1.0, 1.0, 1.0, 1.0]
        assert torch.equal(quantizer.grid().fake_quantize(x), quantizer(x))


def test_equal_weights_and_groups_stay_finite() -> None:
    w = torch.full((2, 8), 0.3)
    for granularity in (PerChannel(0), PerGroup(1, 4), PerGroup(1, 1)):
        y = calibrated(IrNet(), Scheme(bits=1, granularity=granularity), w, role="weight")(w)
        assert torch.isfinite(y).all()


def test_training_the_weights_fits_a_binary_teacher() -> None:
    torch.manual_seed(0)
    x, teacher = torch.randn(256, 20), torch.tensor([-1.0, 1.0]).repeat(10)[:, None]
    w = torch.randn(20, 1).requires_grad_()
    quantizer = calibrated(IrNet(), Scheme(bits=1), w.detach(), role="weight")
    optimizer = torch.optim.Adam([w], lr=0.02)
    losses = []
    for step in range(300):
        quantizer.advance(step / 300)
        optimizer.zero_grad()
        loss = (x @ quantizer(w) - x @ teacher).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


def test_activations_that_are_not_numbers_stay_so() -> None:
    """A diverged network shows it, instead of going on with some level."""
    x = torch.randn(9)
    quantizer = calibrated(IrNet(), Scheme(bits=1), x, role="activation")
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
def test_schemes_that_ir_net_cannot_express_are_refused(scheme: Scheme, role: Role, message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        IrNet().build(scheme, role=role)


@pytest.mark.parametrize("softest, sharpest", [(0.0, 1.0), (2.0, 1.0)])
def test_a_schedule_that_does_not_sharpen_is_refused(softest: float, sharpest: float) -> None:
    with pytest.raises(SettingError, match="0 < softest <= sharpest"):
        IrNet(softest=softest, sharpest=sharpest)


@pytest.mark.filterwarnings("ignore")  # the compiler's own warnings
def test_compiled_and_exported_give_the_eager_values() -> None:
    x = torch.randn(6, 9)
    quantizer = calibrated(IrNet(), Scheme(bits=1), x, role="activation").eval()
    assert torch.equal(torch.compile(quantizer, backend="eager", fullgraph=True)(x), quantizer(x))
    program = torch.export.export(quantizer, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    assert torch.equal(program.module()(x[:4]), quantizer(x[:4]))
    weight = calibrated(IrNet(), Scheme(bits=1, granularity=PerChannel(0)), x, role="weight")
    assert torch.equal(torch.compile(weight, backend="eager", fullgraph=True)(x), weight(x))
