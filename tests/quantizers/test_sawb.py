"""SAWB: its closed forms, how near its clipping level is to the best, and what it refuses."""

import numpy as np
import pytest
import torch
from torch import Tensor

from isobit.core.errors import UnsupportedError
from isobit.core.granularity import PerChannel
from isobit.core.grid import MidRise, PowersOfTwo, Uniform
from isobit.core.rounding import Floor
from isobit.core.scheme import PowerOfTwo, Scheme
from isobit.observers import Mse
from isobit.quantizers.protocol import Role
from isobit.quantizers.sawb import Sawb, SawbQuantizer, clipping_level
from quantizers.calibrating import observed
from quantizers.closed_forms.sawb import CASES, PUBLISHED, expected


def calibrated(settings: Sawb, scheme: Scheme, w: Tensor) -> SawbQuantizer:
    return observed(settings.build(scheme, role="weight"), Mse(), w)


@pytest.mark.parametrize("name", CASES)
def test_output_and_gradient_are_the_closed_form(name: str) -> None:
    settings, scheme, _ = CASES[name]
    torch.manual_seed(0)
    w = torch.randn(6, 50, 3, dtype=torch.float64)
    quantizer = calibrated(settings, scheme, w).double()
    w.requires_grad_()
    upstream = torch.randn_like(w)
    y = quantizer(w)
    (grad,) = torch.autograd.grad(y, w, upstream)
    want = expected(quantizer, w, upstream)
    torch.testing.assert_close(y.detach(), want["output"], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(grad, want["x"], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("name", CASES)
def test_output_lies_on_the_declared_grid_to_the_bit(name: str, mode: str) -> None:
    settings, scheme, _ = CASES[name]
    w = torch.randn(8, 90)
    quantizer = calibrated(settings, scheme, w).train(mode == "train")
    y, grid = quantizer(w), quantizer.grid()
    assert torch.equal(grid.fake_quantize(y), y) and torch.equal(grid.fake_quantize(w), y)
    assert torch.equal(grid.dequantize(grid.quantize(y)), y)
    assert grid.quantize(y).abs().max() <= 127


def error(w: np.ndarray, alpha: float, bits: int, form: str) -> float:
    if form == "none":
        steps = 2**bits - 1
        y = (2 * np.round((np.clip(w / alpha, -1, 1) / 2 + 0.5) * steps) / steps - 1) * alpha
    else:
        steps = 2 ** (bits - 1) - 1
        y = np.round(np.clip(w / alpha, -1, 1) * steps) / steps * alpha
    return float(((w - y) ** 2).mean())


@pytest.mark.parametrize("shape", ["normal", "laplace", "logistic", "uniform"])
@pytest.mark.parametrize(("bits", "form"), [key for key in PUBLISHED if key[0] <= 4], ids=str)
def test_the_clipping_level_has_nearly_the_least_error(bits: int, form: str, shape: str) -> None:
    generator = np.random.default_rng(0)
    w = generator.uniform(-1, 1, 20_000) if shape == "uniform" else getattr(generator, shape)(size=20_000)
    scheme = Sawb(zero_level=form == "zero").build(Scheme(bits=bits), role="weight").scheme
    alpha = float(clipping_level(torch.from_numpy(w), scheme, PUBLISHED[bits, form]))
    candidates = np.linspace(0.3, 1.05, 120) * np.abs(w).max() * (0.6 if shape in ("laplace", "logistic") else 1)
    assert error(w, alpha, bits, form) < 1.03 * min(error(w, c, bits, form) for c in candidates)


def test_two_bits_are_thirds_of_the_clipping_level() -> None:
    torch.manual_seed(0)
    w = torch.randn(1000)
    quantizer = calibrated(Sawb(), Scheme(bits=2), w)
    alpha = 3.12 * w.square().mean().sqrt() - 2.064 * w.abs().mean()
    torch.testing.assert_close(quantizer(w).unique(), alpha * torch.tensor([-1, -1 / 3, 1 / 3, 1]))


def test_calibration_starts_at_the_least_error_and_training_replaces_it() -> None:
    torch.manual_seed(0)
    w = torch.randn(4, 5000) * torch.tensor([[1.0], [0.1], [10.0], [3.0]])
    quantizer = calibrated(Sawb(), Scheme(bits=3, granularity=PerChannel(0)), w)
    start = quantizer.grid().scale.clone()
    frozen = quantizer.eval()(w)
    assert torch.equal(quantizer.grid().scale, start)
    trained = quantizer.train()(w)
    torch.testing.assert_close(quantizer.grid().scale, start, rtol=0.06, atol=0)
    assert not torch.equal(quantizer.grid().scale, start) and not torch.equal(trained, frozen)
    assert torch.equal(quantizer.eval()(w), trained)
    quantizer(w * 2)
    assert torch.equal(quantizer(w), trained)


@pytest.mark.parametrize("bits", [3, 4, 5, 8])
def test_weights_of_one_magnitude_keep_it(bits: int) -> None:
    w = torch.tensor([-0.25, 0.25, 0.25, -0.25])
    torch.testing.assert_close(calibrated(Sawb(), Scheme(bits=bits), w)(w), w)


def test_weights_of_zero_do_not_break_it() -> None:
    w = torch.cat([torch.randn(2, 40), torch.zeros(1, 40)])
    quantizer = calibrated(Sawb(), Scheme(bits=8, granularity=PerChannel(0)), w)
    assert torch.equal(quantizer(w)[2], torch.zeros(40)) and bool((quantizer.grid().scale > 0).all())


@pytest.mark.parametrize(
    ("scheme", "zero_level", "grid"),
    [
        (Scheme(bits=4), False, MidRise()),
        (Scheme(bits=4), True, Uniform()),
        (Scheme(bits=4, narrow=True), False, Uniform()),
        (Scheme(bits=8), False, Uniform()),
    ],
    ids=str,
)
def test_the_grid(scheme: Scheme, zero_level: bool, grid: object) -> None:
    built = Sawb(zero_level=zero_level).build(scheme, role="weight").scheme
    assert built.grid == grid and built.narrow == (grid == Uniform())


@pytest.mark.parametrize(
    ("scheme", "role", "text"),
    [
        (Scheme(), "activation", "weights alone: use `pact`"),
        (Scheme(symmetric=False), "weight", "signed symmetric"),
        (Scheme(signed=False), "weight", "signed symmetric"),
        (Scheme(bits=4, grid=PowersOfTwo()), "weight", "evenly spaced"),
        (Scheme(scale=PowerOfTwo()), "weight", "float scale"),
        (Scheme(rounding=Floor()), "weight", "rounds to nearest"),
        (Scheme(bits=1), "weight", "bits=1 without a level at 0: use 2, 3, 4, 5"),
        (Scheme(bits=6), "weight", "bits=6 without a level at 0: use 2, 3, 4, 5"),
        (Scheme(bits=3, narrow=True), "weight", "bits=3 with a level at 0: use 2, 4, 7, 8"),
    ],
    ids=str,
)
def test_refusals(scheme: Scheme, role: Role, text: str) -> None:
    with pytest.raises(UnsupportedError, match=text):
        Sawb().build(scheme, role=role)


@pytest.mark.parametrize("name", CASES)
def test_state_round_trips_into_a_fresh_module(name: str) -> None:
    settings, scheme, role = CASES[name]
    w = torch.randn(6, 40)
    quantizer = calibrated(settings, scheme, w)
    y = quantizer(w)
    fresh = settings.build(scheme, role=role).eval()
    fresh.load_state_dict(quantizer.state_dict())
    assert torch.equal(fresh(w), y)


@pytest.mark.filterwarnings("ignore")  # the compiler's own warnings
@pytest.mark.parametrize("name", list(CASES)[::3])
def test_compiled_and_exported_equal_eager(name: str) -> None:
    torch._dynamo.reset()
    settings, scheme, _ = CASES[name]
    w = torch.randn(6, 40)
    quantizer = calibrated(settings, scheme, w)
    eager = quantizer(w)
    assert torch.equal(torch.compile(quantizer, backend="aot_eager", fullgraph=True)(w), eager)
    assert torch.equal(torch.export.export(quantizer.eval(), (w,)).module()(w), eager)


def test_training_through_the_grid_reduces_the_error_of_a_linear_layer() -> None:
    torch.manual_seed(0)
    w, x = torch.randn(4, 16, requires_grad=True), torch.randn(256, 16)
    quantizer = calibrated(Sawb(), Scheme(bits=2), w.detach())
    target = x @ (torch.randn(4, 16).sign() * (0.5 + (torch.rand(4, 16) > 0.5))).T
    optimizer = torch.optim.SGD([w], lr=0.03)
    losses = []
    for _ in range(100):
        loss = (x @ quantizer(w).T - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.4 * losses[0]
