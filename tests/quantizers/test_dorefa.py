"""DoReFa-Net: its closed forms, its grids, and what it refuses."""

import math

import pytest
import torch
from torch import Tensor, nn

from isobit.core.errors import UnsupportedError
from isobit.core.granularity import PerChannel
from isobit.core.grid import Codebook, MidRise, PowersOfTwo, Uniform
from isobit.core.qparams import qparams_of_range
from isobit.core.rounding import Floor
from isobit.core.scheme import PowerOfTwo, Scheme
from isobit.observers import MinMax, Mse
from isobit.quantizers.dorefa import DoReFa
from isobit.quantizers.protocol import Role
from quantizers.calibrating import observed
from quantizers.closed_forms.dorefa import CASES, expected


def calibrated(settings: DoReFa, scheme: Scheme, role: Role, x: Tensor) -> nn.Module:
    return observed(settings.build(scheme, role=role), MinMax(), x)


@pytest.mark.parametrize("name", CASES)
def test_output_and_gradient_are_the_closed_form(name: str) -> None:
    settings, scheme, role = CASES[name]
    torch.manual_seed(0)
    x = torch.randn(6, 5, 3, dtype=torch.float64)
    quantizer = calibrated(settings, scheme, role, x if scheme.signed or role == "weight" else x.abs()).double()
    x, upstream = (x * 1.3).requires_grad_(), torch.randn(6, 5, 3, dtype=torch.float64)
    y = quantizer(x)
    (grad,) = torch.autograd.grad(y, x, upstream)
    want = expected(quantizer, x, upstream)
    torch.testing.assert_close(y.detach(), want["output"], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(grad, want["x"], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("name", CASES)
def test_output_lies_on_the_declared_grid_to_the_bit(name: str, mode: str) -> None:
    settings, scheme, role = CASES[name]
    torch.manual_seed(1)
    x = torch.randn(64, 9)
    quantizer = calibrated(settings, scheme, role, x if scheme.signed or role == "weight" else x.abs())
    quantizer.train(mode == "train")
    y, grid = quantizer(x), quantizer.grid()
    assert torch.equal(grid.fake_quantize(y), y)
    assert torch.equal(grid.dequantize(grid.quantize(y)), y)
    if role == "activation":
        assert torch.equal(grid.fake_quantize(x), y)


@pytest.mark.parametrize("bits", range(2, 8))
def test_weights_have_all_levels_of_the_paper(bits: int) -> None:
    w = torch.linspace(-3, 3, 4001)
    quantizer = calibrated(DoReFa(), Scheme(bits=bits), "weight", w)
    steps = 2**bits - 1
    found = quantizer(w).unique() * steps
    torch.testing.assert_close(found, torch.arange(-steps, steps + 1, 2.0))
    assert abs(int(quantizer.grid().quantize(quantizer(w)).max())) <= 127


def test_scale_of_a_layer_is_always_one_over_the_steps() -> None:
    w = torch.randn(8, 8) * 0.02
    quantizer = calibrated(DoReFa(), Scheme(bits=4), "weight", w)
    before = quantizer.grid().scale.clone()
    quantizer(w * 17)
    assert before.item() == quantizer.grid().scale.item() == pytest.approx(1 / 15, rel=1e-7)


def test_one_bit_is_the_sign_times_the_mean_magnitude() -> None:
    w = torch.tensor([[0.5, -1.5], [0.0, -2.0]])
    quantizer = calibrated(DoReFa(), Scheme(bits=1), "weight", w)
    assert quantizer(w).tolist() == [[1.0, -1.0], [1.0, -1.0]]


def test_one_bit_starts_at_the_mean_magnitude_with_the_observer_of_least_error() -> None:
    w = torch.randn(40, 7)
    quantizer = DoReFa().build(Scheme(bits=1), role="weight")
    observer = Mse().build(quantizer.scheme)  # type: ignore[arg-type]
    observer.see(w)
    quantizer.calibrate(observer.qparams())  # type: ignore[operator]
    torch.testing.assert_close(quantizer.grid().scale, w.abs().mean(), rtol=0.02, atol=0)


@pytest.mark.parametrize(
    ("scheme", "zero_level", "grid"),
    [
        (Scheme(bits=7), False, MidRise()),
        (Scheme(bits=8), False, Uniform()),
        (Scheme(bits=4), True, Uniform()),
        (Scheme(bits=4, narrow=True), False, Uniform()),
        (Scheme(bits=4, symmetric=False), False, Uniform()),
    ],
    ids=str,
)
def test_the_ordinary_grid_is_taken_where_the_papers_does_not_fit(
    scheme: Scheme, zero_level: bool, grid: object
) -> None:
    assert DoReFa(zero_level=zero_level).build(scheme, role="weight").scheme.grid == grid  # type: ignore[union-attr]


@pytest.mark.parametrize("bits", [4, 8])
def test_channels_keep_their_ratio(bits: int) -> None:
    w = torch.randn(3, 400) * torch.tensor([[0.01], [0.1], [1.0]])
    y = calibrated(DoReFa(), Scheme(bits=bits, granularity=PerChannel(0)), "weight", w)(w)
    spread = torch.tanh(w).std(1) / torch.tanh(w).abs().max()
    torch.testing.assert_close(y.std(1), spread, rtol=0.05, atol=0)


def test_scales_follow_the_weights_in_training_and_are_frozen_at_inference() -> None:
    w = torch.randn(3, 50)
    quantizer = calibrated(DoReFa(), Scheme(bits=4, granularity=PerChannel(0)), "weight", w)
    quantizer(w)
    trained = quantizer.grid().scale.clone()
    quantizer.eval()(w * torch.tensor([[1.0], [0.1], [3.0]]))
    assert torch.equal(quantizer.grid().scale, trained)
    output = quantizer(w)
    assert torch.equal(quantizer.train()(w), output)


def test_the_ordinary_grid_is_what_mqbench_computes() -> None:
    torch.manual_seed(0)
    w = torch.randn(4, 300)
    x = w.tanh() / w.tanh().abs().max()
    scale, zero = x.abs().amax(1) / 127, torch.zeros(4)
    quantizer = calibrated(DoReFa(), Scheme(bits=8, granularity=PerChannel(0)), "weight", w)
    torch.testing.assert_close(quantizer(w), torch.fake_quantize_per_channel_affine(x, scale, zero, 0, -128, 127))


def test_the_largest_weight_has_a_gradient() -> None:
    w = torch.tensor([0.1, -0.4, 2.0], requires_grad=True)
    quantizer = calibrated(DoReFa(), Scheme(bits=3), "weight", w.detach())
    quantizer(w)[0].backward()
    assert w.grad is not None and w.grad[2] == pytest.approx(-math.tanh(0.1) / math.tanh(2) ** 2 / math.cosh(2) ** 2)


def test_activations_of_an_asymmetric_format_have_the_whole_unit_interval() -> None:
    grid = calibrated(DoReFa(), Scheme(symmetric=False), "activation", torch.rand(100)).grid()
    low, high = grid.range()
    assert (low.item(), high.item()) == (0.0, pytest.approx(1.0)) and grid.zero_point.item() == -128
    grid = calibrated(DoReFa(), Scheme(symmetric=False), "activation", torch.randn(100)).grid()
    assert grid.scale.item() == pytest.approx(2 / 255)


def test_the_sign_of_an_activation_is_settled_and_saved() -> None:
    scheme = Scheme(bits=4, adapt_sign=True)
    quantizer = calibrated(DoReFa(), scheme, "activation", torch.rand(10))
    assert not quantizer.grid().scheme.signed and quantizer.grid().scale.item() == pytest.approx(1 / 15)
    fresh = DoReFa().build(scheme)
    fresh.load_state_dict(quantizer.state_dict())
    assert fresh.grid().scheme == quantizer.grid().scheme


@pytest.mark.parametrize(
    ("scheme", "role", "text"),
    [
        (Scheme(scale=PowerOfTwo()), "weight", "no power of two"),
        (Scheme(scale=PowerOfTwo()), "activation", "no power of two"),
        (Scheme(rounding=Floor()), "activation", "rounds to nearest"),
        (Scheme(bits=4, grid=PowersOfTwo()), "weight", "evenly spaced"),
        (Scheme(bits=4, grid=Codebook()), "activation", "evenly spaced"),
        (Scheme(signed=False), "weight", "both signs"),
        (Scheme(bits=1), "activation", "1 bit are {0, 1}"),
    ],
    ids=str,
)
def test_refusals(scheme: Scheme, role: Role, text: str) -> None:
    with pytest.raises(UnsupportedError, match=text):
        DoReFa().build(scheme, role=role)
    with pytest.raises(UnsupportedError, match="no room for a level at 0"):
        DoReFa(zero_level=True).build(Scheme(bits=1), role="weight")


@pytest.mark.filterwarnings("ignore")  # the compiler's own warnings
@pytest.mark.parametrize("name", list(CASES)[::3])
def test_compiled_equals_eager_and_export_keeps_the_batch_dynamic(name: str) -> None:
    torch._dynamo.reset()
    settings, scheme, role = CASES[name]
    x = torch.rand(6, 5)
    quantizer = calibrated(settings, scheme, role, x)
    eager = quantizer(x)
    compiled = torch.compile(quantizer, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), eager)
    quantizer.eval()
    if role == "activation":
        program = torch.export.export(quantizer, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
        longer = torch.rand(11, 5)
        assert torch.equal(program.module()(longer), quantizer(longer))
    else:
        assert torch.equal(torch.export.export(quantizer, (x,)).module()(x), quantizer(x))


def test_training_through_the_grid_reduces_the_error_of_a_linear_layer() -> None:
    torch.manual_seed(0)
    w, x = nn.Parameter(torch.randn(4, 16)), torch.randn(256, 16)
    quantizer = calibrated(DoReFa(), Scheme(bits=2), "weight", w.detach())
    target = x @ (torch.randn(4, 16).sign() * (torch.rand(4, 16) > 0.5)).T
    optimizer = torch.optim.SGD([w], lr=0.05)
    losses = []
    for _ in range(60):
        loss = (x @ quantizer(w).T - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_a_range_far_from_the_calibrated_one_stays_on_the_grid() -> None:
    quantizer = DoReFa().build(Scheme(bits=3), role="weight")
    quantizer.calibrate(qparams_of_range(torch.tensor(-1e-30), torch.tensor(1e-30), quantizer.scheme))  # type: ignore[operator]
    w = torch.randn(30) * 1e4
    assert torch.equal(quantizer.grid().fake_quantize(quantizer(w)), quantizer(w))
    torch.testing.assert_close(quantizer(torch.zeros(4)), torch.full((4,), 1 / 7))


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_a_channel_of_zeros_has_the_range_of_the_layer(bits: int) -> None:
    w = torch.randn(3, 50)
    w[1] = 0
    quantizer = calibrated(DoReFa(), Scheme(bits=bits, granularity=PerChannel(0)), "weight", w)
    y = quantizer(w)[1]
    zero = {1: w.abs().mean().item(), 4: 1 / 15, 8: 0.0}[bits]
    torch.testing.assert_close(y, torch.full_like(y, zero))


@pytest.mark.parametrize("name", CASES)
def test_state_round_trips_into_a_fresh_module(name: str) -> None:
    settings, scheme, role = CASES[name]
    x = torch.randn(6, 40)
    quantizer = calibrated(settings, scheme, role, x)
    quantizer(x)
    fresh = settings.build(scheme, role=role).eval()
    fresh.load_state_dict(quantizer.eval().state_dict())
    assert torch.equal(fresh(x), quantizer(x)) and fresh.grid().scheme == quantizer.grid().scheme
