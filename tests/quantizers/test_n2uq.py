"""N2UQ's weights: the scaling, how its levels are used, and what it refuses."""

import pytest
import torch

from isobit.core.errors import UnsupportedError
from isobit.core.granularity import PerChannel, PerGroup
from isobit.core.grid import Codebook
from isobit.core.qparams import qparams_of_range
from isobit.core.rounding import Floor
from isobit.core.scheme import PowerOfTwo, Scheme
from isobit.quantizers.bwn import Bwn
from isobit.quantizers.n2uq import N2uq, N2uqQuantizer
from isobit.quantizers.protocol import Role


def calibrated(w: torch.Tensor, scheme: Scheme, settings: N2uq | None = None) -> N2uqQuantizer:
    quantizer = (settings or N2uq()).build(scheme, role="weight")
    low, high = (w.amin(1), w.amax(1)) if isinstance(scheme.granularity, PerChannel) else (w.amin(), w.amax())
    quantizer.calibrate(qparams_of_range(low, high, quantizer.scheme))
    return quantizer


def test_two_bits_by_hand() -> None:
    """mean|w| = 0.8 and c = 1.2, so the levels are ±0.4 and ±1.2, between them thresholds at 0 and ±0.8."""
    w = torch.tensor([-2.0, -0.81, -0.79, -0.1, 0.1, 0.79, 0.81, 1.0])
    quantizer = calibrated(w, Scheme(bits=2))
    torch.testing.assert_close(quantizer(w), torch.tensor([-1.2, -1.2, -0.4, -0.4, 0.4, 0.4, 1.2, 1.2]))
    assert quantizer.grid().scale.item() == pytest.approx(0.4)
    assert quantizer.grid().quantize(w).tolist() == [-3, -3, -1, -1, 1, 1, 3, 3]


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_evenly_spread_weights_use_every_level_alike(bits: int) -> None:
    """The purpose of the scaling: the entropy of the levels is the largest, as many bits as there are."""
    w = torch.linspace(-1, 1, 20_000)
    quantizer = calibrated(w, Scheme(bits=bits))
    quantizer(w)
    _, used = quantizer.grid().quantize(w).unique(return_counts=True)
    shares = used / w.numel()
    assert used.numel() == 2**bits
    assert -(shares * shares.log2()).sum().item() == pytest.approx(bits, abs=1e-4)


def test_one_bit_is_the_sign_at_the_mean_magnitude() -> None:
    w = torch.randn(6, 50)
    scheme = Scheme(bits=1, granularity=PerChannel(0))
    binary = Bwn().build(scheme, role="weight")
    binary.calibrate(qparams_of_range(w.amin(1), w.amax(1), binary.scheme))
    torch.testing.assert_close(calibrated(w, scheme)(w), binary(w))


def test_the_scale_follows_the_weights() -> None:
    w = torch.randn(3, 40)
    quantizer = calibrated(w, Scheme(bits=3))
    assert quantizer.grid().range()[1].item() == pytest.approx(w.abs().max().item(), rel=0.4)
    first = quantizer(w).clone()
    torch.testing.assert_close(quantizer(w * 5), first * 5)
    assert torch.equal(quantizer.grid().fake_quantize(first * 5), quantizer(w * 5))


def test_clipped_weights_get_the_gradient_too() -> None:
    w = torch.tensor([0.1, 0.2, -9.0], requires_grad=True)
    for settings, divisor in [(N2uq(), 1.0), (N2uq(unit_gradient=True), 3.1 * 1.5)]:
        quantizer = calibrated(w.detach(), Scheme(bits=2), settings)
        (grad,) = torch.autograd.grad(quantizer(w).sum(), w)
        torch.testing.assert_close(grad, torch.full((3,), 1 / divisor))


def test_groups_and_powers_of_two() -> None:
    w = torch.randn(4, 16)
    scheme = Scheme(bits=4, granularity=PerGroup(1, 8), scale=PowerOfTwo())
    quantizer = N2uq().build(scheme, role="weight")
    quantizer.calibrate(qparams_of_range(-torch.ones(4, 2), torch.ones(4, 2), quantizer.scheme))
    y, scale = quantizer(w), quantizer.grid().scale
    assert torch.equal(scale.log2(), scale.log2().round())
    assert torch.equal(quantizer.grid().dequantize(quantizer.grid().quantize(y)), y)


def test_training_the_weights_lowers_a_loss() -> None:
    torch.manual_seed(0)
    w = torch.nn.Parameter(torch.randn(8, 8))
    x, target = torch.randn(200, 8), torch.randn(200, 8)
    quantizer = calibrated(w.detach(), Scheme(bits=3, granularity=PerChannel(0)))
    optimizer = torch.optim.Adam([w], lr=0.02)
    losses = []
    for _ in range(100):
        optimizer.zero_grad()
        loss = (x @ quantizer(w) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_weights_of_zero_stay_finite_and_what_is_no_number_stays_so() -> None:
    w = torch.zeros(4, 4)
    quantizer = calibrated(w, Scheme(bits=4))
    assert torch.isfinite(quantizer(w)).all()
    assert quantizer(torch.full((4, 4), float("nan"))).isnan().all()


def test_weights_that_pass_twice_before_the_backward_pass_get_their_gradient() -> None:
    """Shared weights: what follows them in a buffer must not be part of the graph."""
    w = torch.randn(5, 6, requires_grad=True)
    quantizer = calibrated(w.detach(), Scheme(bits=3))
    (once,) = torch.autograd.grad(quantizer(w).sum(), w)
    (twice,) = torch.autograd.grad((quantizer(w) + quantizer(w)).sum(), w)
    assert torch.equal(twice, 2 * once)


def test_a_fresh_module_loads_the_scale() -> None:
    w = torch.randn(5, 6)
    scheme = Scheme(bits=4, granularity=PerChannel(0))
    quantizer = calibrated(w, scheme)
    quantizer(w)
    fresh = N2uq().build(scheme, role="weight")
    fresh.load_state_dict(quantizer.state_dict())
    assert torch.equal(fresh.grid().fake_quantize(w), quantizer(w))


@pytest.mark.parametrize(
    "scheme, role, message",
    [
        (Scheme(bits=4, signed=False), "activation", "learned, uneven thresholds"),
        (Scheme(bits=8), "weight", "up to 7 bits, not 8"),
        (Scheme(bits=4, signed=False), "weight", "signed, symmetric"),
        (Scheme(bits=4, symmetric=False), "weight", "signed, symmetric"),
        (Scheme(bits=4, narrow=True), "weight", "without `narrow`"),
        (Scheme(bits=4, grid=Codebook()), "weight", "even steps"),
        (Scheme(bits=4, rounding=Floor()), "weight", "even steps"),
    ],
)
def test_schemes_that_n2uq_cannot_express_are_refused(scheme: Scheme, role: Role, message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        N2uq().build(scheme, role=role)


@pytest.mark.filterwarnings("ignore")  # the compiler's own warnings
def test_compiled_and_exported_give_the_eager_values() -> None:
    w = torch.randn(6, 9)
    quantizer = calibrated(w, Scheme(bits=3))
    assert torch.equal(torch.compile(quantizer, backend="eager", fullgraph=True)(w), quantizer(w))
    program = torch.export.export(quantizer.eval(), (w,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    assert torch.equal(program.module()(w[:4]), quantizer(w[:4]))
