"""LCQ: the companding function by hand, weight normalisation, and what it refuses."""

import importlib
import math
from typing import Any

import pytest
import torch

from isobit.core.errors import SettingError, UnsupportedError
from isobit.core.granularity import PerChannel, PerGroup
from isobit.core.grid import MidRise
from isobit.core.rounding import Floor
from isobit.core.scheme import PowerOfTwo, Scheme
from isobit.observers import OBSERVERS
from isobit.quantizers.lcq import Lcq, LcqQuantizer, compress, expand_levels
from isobit.quantizers.protocol import Role
from quantizers.calibrating import observed

gradients: Any = importlib.import_module("gradient_table")


def calibrated(w: torch.Tensor, scheme: Scheme, settings: Lcq | None = None) -> LcqQuantizer:
    return observed((settings or Lcq()).build(scheme, role="weight"), OBSERVERS[Lcq.observer](), w)


def test_two_intervals_by_hand() -> None:
    """Slopes of 1.5 and 0.5: levels 0, 2/9, 4/9 and 1, between them thresholds at 1/9, 1/3 and 2/3."""
    w = torch.tensor([-1.2, -0.68, -0.65, -0.34, 0.0, 0.1, 0.12, 0.32, 0.34, 0.65, 0.68, 1.0])
    quantizer = calibrated(w, Scheme(bits=3), Lcq(intervals=2, normalise_weights=False))
    quantizer.alpha.data = torch.tensor(1.0)
    assert quantizer.theta is not None
    quantizer.theta.data = torch.tensor([math.log(3), 0.0])
    low, high = 2 / 9, 4 / 9
    wanted = torch.tensor([-1, -1, -high, -high, 0, 0, low, low, high, high, 1, 1])
    torch.testing.assert_close(quantizer(w).detach(), wanted)
    torch.testing.assert_close(quantizer.grid().codebook, torch.tensor([-1, -high, -low, 0, low, high, 1]))


def test_it_starts_as_a_uniform_quantizer_of_three_deviations() -> None:
    w = torch.randn(16, 40) * 0.05
    quantizer = calibrated(w, Scheme(bits=4))
    assert quantizer.alpha.item() == 3.0
    scale = 3 * w.std(correction=0) / 7
    torch.testing.assert_close(quantizer(w).detach(), (w / scale).round().clamp(-7, 7) * scale)
    torch.testing.assert_close(quantizer.levels(), torch.linspace(-1, 1, 15))


def test_the_expander_inverts_the_compressor() -> None:
    torch.manual_seed(0)
    theta, v = torch.randn(16, dtype=torch.float64) * 2, torch.linspace(0, 1, 1001, dtype=torch.float64)
    y = compress(v, theta)
    assert (y[0], y[-1]) == (0, pytest.approx(1))
    assert bool((y.diff() > 0).all())
    torch.testing.assert_close(expand_levels(y, theta), v)


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("granularity", [PerChannel(0), PerGroup(1, 10)])
def test_output_and_gradients_are_the_closed_form_for_a_learned_function(
    bits: int, granularity: PerChannel | PerGroup
) -> None:
    """The contract has the start, where the function is the identity."""
    torch.manual_seed(0)
    w, upstream = torch.randn(6, 8, 5, dtype=torch.float64), torch.randn(6, 8, 5, dtype=torch.float64)
    groups = isinstance(granularity, PerGroup)
    seen = w.reshape(24, 10) if groups else w
    quantizer = calibrated(seen.float(), Scheme(bits=bits, granularity=granularity), Lcq(alpha=1.5)).double()
    assert quantizer.theta is not None
    quantizer.theta.data = torch.randn(16, dtype=torch.float64) * 1.5
    quantizer.alpha.data *= torch.rand(24, 1).double() + 0.5 if groups else torch.rand(6).double() + 0.5
    seen = seen.clone().requires_grad_()
    y = quantizer(seen)
    found = torch.autograd.grad(y, [seen, quantizer.alpha, quantizer.theta], upstream.reshape(seen.shape))
    if groups:  # each group is a row of 10 values: the closed form of channels
        quantizer.scheme = Scheme(bits=bits, granularity=PerChannel(0))
        rows = seen.detach().reshape(24, 10, 1)
        wanted = gradients.closed_forms()["lcq"].expected(quantizer, rows, upstream.reshape(24, 10, 1))
    else:
        wanted = gradients.closed_forms()["lcq"].expected(quantizer, w, upstream)
    for name, value in zip(["output", "x", "alpha", "theta"], [y.detach(), *found], strict=True):
        torch.testing.assert_close(value.flatten(), wanted[name].flatten(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_the_output_lies_on_the_declared_codebook_whatever_was_learned(bits: int) -> None:
    torch.manual_seed(0)
    w = torch.randn(6, 500) * torch.tensor([0.01, 0.1, 1, 3, 10, 100])[:, None]
    quantizer = calibrated(w, Scheme(bits=bits, granularity=PerChannel(0))).eval()
    for spread in (0.0, 1.0, 4.0):
        if quantizer.theta is not None:
            quantizer.theta.data = torch.randn(16) * spread
        y, grid = quantizer(w), quantizer.grid()
        assert grid.codebook is not None
        assert grid.codebook.numel() == 2**bits - 1
        assert torch.equal(grid.fake_quantize(y), y)
        assert torch.equal(grid.dequantize(grid.quantize(y)), y)
        assert bool((y.detach().abs().amax(1) <= 3 * w.std(1, correction=0) * (1 + 1e-6)).all())


def test_normalised_weights_keep_their_size() -> None:
    w = torch.randn(8, 30, dtype=torch.float64)
    quantizer = calibrated(w.float(), Scheme(bits=4)).double()
    torch.testing.assert_close(quantizer(w * 0.01), quantizer(w) * 0.01)
    raw = calibrated(w.float(), Scheme(bits=4), Lcq(normalise_weights=False)).double()
    assert raw.alpha.item() == pytest.approx(min(3 * w.std(correction=0).item(), w.abs().max().item()), rel=0.05)
    assert not torch.allclose(raw(w * 0.01), raw(w) * 0.01)


def test_training_the_function_lowers_the_error_below_that_of_even_levels() -> None:
    torch.manual_seed(0)
    w = torch.distributions.Laplace(0.0, 1.0).sample((64, 64))
    errors = {}
    for learned in ("alpha", "alpha and theta"):
        quantizer = calibrated(w, Scheme(bits=4), Lcq(alpha=4.0))
        assert quantizer.theta is not None
        quantizer.theta.requires_grad_(learned != "alpha")
        optimizer = torch.optim.Adam([p for p in quantizer.parameters() if p.requires_grad], lr=0.02)
        for _ in range(200):
            optimizer.zero_grad()
            error = (quantizer(w) - w).square().mean()
            error.backward()
            optimizer.step()
        errors[learned] = error.item()
    assert errors["alpha and theta"] < 0.85 * errors["alpha"]


def test_two_bits_have_no_function_to_learn() -> None:
    w = torch.randn(50)
    quantizer = calibrated(w, Scheme(bits=2), Lcq(normalise_weights=False))
    assert [name for name, _ in quantizer.named_parameters()] == ["alpha"]
    quantizer.alpha.data = torch.tensor(1.0)
    assert quantizer(torch.tensor([-2.0, -0.6, -0.4, 0.0, 0.4, 0.6])).tolist() == [-1.0, -1.0, 0.0, 0.0, 0.0, 1.0]


def test_equal_weights_stay_finite_and_an_alpha_that_crosses_zero_usable() -> None:
    w = torch.full((4, 4), 0.3)
    quantizer = calibrated(w, Scheme(bits=4))
    assert torch.isfinite(quantizer(w)).all()
    quantizer = calibrated(torch.randn(9), Scheme(bits=4))
    quantizer.alpha.data = torch.tensor(-2.0)
    assert quantizer.grid().scale.item() == pytest.approx(2 * quantizer.deviation.item())


def test_weights_that_pass_twice_before_the_backward_pass_get_their_gradient() -> None:
    """Shared weights: what follows them in a buffer must not be part of the graph."""
    w = torch.randn(5, 6, requires_grad=True)
    quantizer = calibrated(w.detach(), Scheme(bits=4))
    (once,) = torch.autograd.grad(quantizer(w).sum(), w)
    (twice,) = torch.autograd.grad((quantizer(w) + quantizer(w)).sum(), w)
    assert torch.equal(twice, 2 * once)


def test_a_fresh_module_loads_what_was_learned() -> None:
    w = torch.randn(5, 6)
    scheme = Scheme(bits=4, granularity=PerChannel(0))
    quantizer = calibrated(w, scheme)
    assert quantizer.theta is not None
    quantizer.theta.data = torch.randn(16)
    quantizer(w)
    fresh = Lcq().build(scheme, role="weight")
    fresh.load_state_dict(quantizer.state_dict())
    assert torch.equal(fresh.grid().fake_quantize(w), quantizer.grid().fake_quantize(w))
    assert torch.equal(fresh(w), quantizer(w))


@pytest.mark.parametrize(
    "scheme, role, message",
    [
        (Scheme(bits=4, signed=False), "activation", "no engine computes from x"),
        (Scheme(bits=1), "weight", "2 to 8 bits, not 1"),
        (Scheme(bits=9), "weight", "2 to 8 bits, not 9"),
        (Scheme(bits=4, signed=False), "weight", "signed, symmetric"),
        (Scheme(bits=4, symmetric=False), "weight", "signed, symmetric"),
        (Scheme(bits=4, scale=PowerOfTwo()), "weight", "use `tqt`"),
        (Scheme(bits=4, grid=MidRise()), "weight", "levels of its own"),
        (Scheme(bits=4, rounding=Floor()), "weight", "levels of its own"),
    ],
)
def test_schemes_that_lcq_cannot_express_are_refused(scheme: Scheme, role: Role, message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        Lcq().build(scheme, role=role)


@pytest.mark.parametrize("settings", [{"intervals": 0}, {"alpha": 0.0}])
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match="LCQ"):
        Lcq(**settings)


@pytest.mark.filterwarnings("ignore")  # the compiler's own warnings
@pytest.mark.parametrize("bits", [2, 4])
def test_compiled_and_exported_give_the_eager_values(bits: int) -> None:
    w = torch.randn(6, 9)
    quantizer = calibrated(w, Scheme(bits=bits))
    assert torch.equal(torch.compile(quantizer, backend="eager", fullgraph=True)(w), quantizer(w))
    program = torch.export.export(quantizer.eval(), (w,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    assert torch.equal(program.module()(w[:4]), quantizer(w[:4]))
