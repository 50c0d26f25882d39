"""QIL: its closed forms, what its interval prunes and clips, and what it refuses."""

import pytest
import torch
from torch import Tensor, nn

from isobit.core.errors import UnsupportedError
from isobit.core.granularity import PerChannel
from isobit.core.grid import PowersOfTwo
from isobit.core.rounding import Floor
from isobit.core.scheme import PowerOfTwo, Scheme
from isobit.observers import MinMax
from isobit.quantizers.protocol import Role
from isobit.quantizers.qil import Qil
from quantizers.calibrating import observed
from quantizers.closed_forms.qil import CASES, expected


def calibrated(settings: Qil, scheme: Scheme, role: Role, x: Tensor) -> nn.Module:
    return observed(settings.build(scheme, role=role), MinMax(), x)


def moved(quantizer: nn.Module, *, center: float, distance: float) -> nn.Module:
    """With the interval at other fractions of where it started, as after some training."""
    quantizer.center.data *= center
    quantizer.distance.data *= distance
    if "gamma" in dict(quantizer.named_parameters()):
        quantizer.gamma.data.fill_(1.4)
    return quantizer


def of_case(name: str) -> nn.Module:
    settings, scheme, role = CASES[name]
    torch.manual_seed(0)
    seen = torch.randn(6, 5, 3)
    quantizer = calibrated(settings, scheme, role, seen if scheme.signed else seen.abs())
    return moved(quantizer, center=0.9, distance=0.6)


@pytest.mark.parametrize("name", CASES)
def test_output_and_gradients_are_the_closed_form(name: str) -> None:
    quantizer = of_case(name).double()
    x = torch.randn(6, 5, 3, dtype=torch.float64).mul(1.5).requires_grad_()
    upstream = torch.randn_like(x)
    learned = dict(quantizer.named_parameters())
    y = quantizer(x)
    grads = torch.autograd.grad(y, [x, *learned.values()], upstream)
    want = expected(quantizer, x, upstream)
    assert want.keys() == {"output", "x", *learned}
    torch.testing.assert_close(y.detach(), want["output"], rtol=1e-12, atol=1e-14)
    for parameter, grad in zip(["x", *learned], grads, strict=True):
        torch.testing.assert_close(grad, want[parameter], rtol=1e-12, atol=1e-13)
        assert grad.abs().sum() > 0


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("name", CASES)
def test_output_lies_on_the_declared_grid_to_the_bit(name: str, mode: str) -> None:
    quantizer = of_case(name).train(mode == "train")
    x = torch.randn(6, 500) * 2
    y, grid = quantizer(x), quantizer.grid()
    assert torch.equal(grid.fake_quantize(y), y)
    assert torch.equal(grid.dequantize(grid.quantize(y)), y)
    if CASES[name][2] == "activation":
        assert torch.equal(grid.fake_quantize(x), y)


def test_weights_are_pruned_below_the_interval_and_clipped_above() -> None:
    w = torch.tensor([-1.0, -0.7, -0.3, 0.0, 0.1, 0.29, 0.31, 0.5, 0.69, 1.0])
    quantizer = calibrated(Qil(), Scheme(bits=8), "weight", w)
    quantizer.center.data, quantizer.distance.data = torch.tensor(0.5), torch.tensor(0.2)
    y = quantizer(w)
    assert y[[0, 1]].tolist() == [-1.0, -1.0] and y[-1].item() == 1.0
    assert y[3:6].tolist() == [0.0, 0.0, 0.0]
    torch.testing.assert_close(y[7], torch.tensor(64 / 127))
    assert quantizer.grid().scheme.narrow and quantizer.grid().scale.item() == pytest.approx(1 / 127)


def test_the_interval_starts_at_the_largest_weight() -> None:
    w = torch.tensor([[0.5, -2.0], [1.0, 0.25]])
    quantizer = calibrated(Qil(), Scheme(bits=4, granularity=PerChannel(0)), "weight", w)
    for start in (quantizer.center, quantizer.distance):
        torch.testing.assert_close(start.detach(), torch.tensor([1.0, 0.5]))
    torch.testing.assert_close(quantizer(w)[:, 0], torch.tensor([2 / 7, 1.0]))


def test_gamma_bends_the_transformer_without_nan_at_pruned_weights() -> None:
    w = torch.linspace(-2, 2, 81, requires_grad=True)
    quantizer = calibrated(Qil(learn_gamma=True), Scheme(bits=8), "weight", w.detach())
    quantizer.center.data, quantizer.distance.data = torch.tensor(1.0), torch.tensor(0.5)
    quantizer.gamma.data = torch.tensor(0.5)
    y = quantizer(w)
    torch.testing.assert_close(y[w == 1.0], torch.tensor([round(0.5**0.5 * 127) / 127]))
    y.sin().sum().backward()
    for tensor in (w, quantizer.gamma, quantizer.center, quantizer.distance):
        assert bool(tensor.grad.isfinite().all())


@pytest.mark.parametrize("scheme", [Scheme(bits=4, signed=False), Scheme(bits=4, adapt_sign=True)], ids=str)
def test_pruned_activations_begin_at_a_multiple_of_the_step_and_fit_a_byte(scheme: Scheme) -> None:
    quantizer = calibrated(Qil(prune=True), scheme, "activation", torch.rand(99))
    quantizer.center.data, quantizer.distance.data = torch.tensor(0.51), torch.tensor(0.15)
    grid = quantizer.grid()
    assert grid.scale.item() == pytest.approx(0.02) and 15 - grid.zero_point.item() <= 255
    y = quantizer(torch.tensor([0.0, 0.3, 0.4, 0.66, 2.0]))
    torch.testing.assert_close(y, torch.tensor([0.36, 0.36, 0.4, 0.66, 0.66]))
    quantizer.center.data, quantizer.distance.data = torch.tensor(1e6), torch.tensor(1.0)
    assert quantizer.grid().zero_point.item() == 15 - 255


@pytest.mark.parametrize(
    ("settings", "scheme"),
    [
        (Qil(prune=True), Scheme(bits=8, signed=False)),
        (Qil(prune=True), Scheme(bits=16, signed=False)),
        (Qil(), Scheme(bits=4, signed=False)),
        (Qil(prune=True), Scheme(bits=4)),
        (Qil(), Scheme(bits=4, signed=False, symmetric=False)),
    ],
    ids=str,
)
def test_without_room_or_wish_nothing_is_pruned(settings: Qil, scheme: Scheme) -> None:
    quantizer = calibrated(settings, scheme, "activation", torch.rand(99))
    quantizer.center.data, quantizer.distance.data = torch.tensor(0.5), torch.tensor(0.2)
    assert quantizer.grid().zero_point.item() == 0 and quantizer(torch.zeros(1)).item() == 0.0


def test_an_asymmetric_format_starts_with_the_whole_range() -> None:
    quantizer = calibrated(Qil(), Scheme(symmetric=False), "activation", torch.tensor([-1.0, 3.0]))
    low, high = quantizer.grid().range()
    assert (low.item(), high.item()) == (pytest.approx(-1, abs=0.01), pytest.approx(3, abs=0.01))
    assert (quantizer.center.item(), quantizer.distance.item()) == (pytest.approx(1, abs=0.01), pytest.approx(2))


@pytest.mark.parametrize("bits", [4, 12])
def test_an_asymmetric_format_of_any_width_has_an_interval_that_begins_below_zero(bits: int) -> None:
    x = torch.linspace(-1, 3, 999)
    y = calibrated(Qil(), Scheme(bits=bits, symmetric=False), "activation", x)(x)
    assert (y - x).abs().max() < 2 * 4 / (2**bits - 1)


def test_learning_the_interval_reduces_the_error_of_activations_with_an_offset() -> None:
    torch.manual_seed(0)
    x = torch.rand(2000) * 0.5 + 2.0
    quantizer = calibrated(Qil(prune=True), Scheme(bits=3, signed=False), "activation", x)
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=0.01)
    errors = []
    for _ in range(300):
        error = (quantizer(x) - x).square().mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        errors.append(error.item())
    assert errors[-1] < 0.1 * errors[0]


def test_learning_the_interval_reduces_the_error_of_weights_up_to_their_size() -> None:
    torch.manual_seed(0)
    w = torch.randn(4000)
    quantizer = calibrated(Qil(), Scheme(bits=3), "weight", w)
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=0.02)
    errors = []
    for _ in range(150):
        error = 1 - torch.cosine_similarity(quantizer(w), w, dim=0)
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        errors.append(error.item())
    assert errors[-1] < 0.6 * errors[0]


def test_the_learning_rate_is_lower_unless_the_gradient_is_damped() -> None:
    for role in ("weight", "activation"):
        assert Qil().build(Scheme(bits=4), role=role).learning_rate_scale == 0.01
        assert Qil(learning_rate_scale=None).build(Scheme(bits=4), role=role).learning_rate_scale is None


@pytest.mark.parametrize(
    ("scheme", "role", "text"),
    [
        (Scheme(symmetric=False), "weight", "signed symmetric"),
        (Scheme(signed=False), "weight", "signed symmetric"),
        (Scheme(scale=PowerOfTwo()), "weight", "no power of two"),
        (Scheme(bits=1), "weight", "use 2 bits"),
        (Scheme(bits=1), "activation", "use 2 bits"),
        (Scheme(bits=4, grid=PowersOfTwo()), "activation", "uniform grid"),
        (Scheme(rounding=Floor()), "weight", "rounding to nearest"),
    ],
    ids=str,
)
def test_refusals(scheme: Scheme, role: Role, text: str) -> None:
    with pytest.raises(UnsupportedError, match=text):
        Qil().build(scheme, role=role)


@pytest.mark.parametrize("name", CASES)
def test_state_round_trips_into_a_fresh_module(name: str) -> None:
    settings, scheme, role = CASES[name]
    quantizer = of_case(name).eval()
    fresh = settings.build(scheme, role=role).eval()
    fresh.load_state_dict(quantizer.state_dict())
    x = torch.randn(6, 40)
    assert torch.equal(fresh(x), quantizer(x)) and fresh.grid().scheme == quantizer.grid().scheme


def test_the_settled_sign_is_saved() -> None:
    scheme = Scheme(bits=4, adapt_sign=True, narrow=True)
    for x in (torch.rand(50), torch.randn(50)):
        quantizer = calibrated(Qil(prune=True), scheme, "activation", x)
        fresh = Qil(prune=True).build(scheme)
        fresh.load_state_dict(quantizer.state_dict())
        assert fresh.grid().scheme == quantizer.grid().scheme
        assert torch.equal(fresh(x), quantizer(x)) and quantizer.grid().scheme.signed == bool((x < 0).any())


@pytest.mark.filterwarnings("ignore")  # the compiler's own warnings
@pytest.mark.parametrize("name", list(CASES)[::3])
def test_compiled_equals_eager_and_export_keeps_the_batch_dynamic(name: str) -> None:
    torch._dynamo.reset()
    quantizer = of_case(name)
    x = torch.randn(6, 5)
    eager = quantizer(x)
    (want,) = torch.autograd.grad(eager.sin().sum(), quantizer.distance)
    y = torch.compile(quantizer, backend="aot_eager", fullgraph=True)(x)
    (grad,) = torch.autograd.grad(y.sin().sum(), quantizer.distance)
    assert torch.equal(y, eager)
    torch.testing.assert_close(grad, want)
    quantizer.eval()
    batch = ({0: torch.export.Dim("batch", min=1)},) if CASES[name][2] == "activation" else None
    program = torch.export.export(quantizer, (x,), dynamic_shapes=batch).module()
    other = torch.randn(11 if batch else 6, 5)
    assert torch.equal(program(other), quantizer(other))
