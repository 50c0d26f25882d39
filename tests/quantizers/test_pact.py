"""PACT: its closed forms, its start, its penalty, and what it refuses."""

import pytest
import torch
from torch import Tensor

from isobit.core.errors import SettingError, UnsupportedError
from isobit.core.granularity import PerChannel
from isobit.core.grid import PowersOfTwo
from isobit.core.qparams import QParams
from isobit.core.rounding import Stochastic
from isobit.core.scheme import PowerOfTwo, Scheme
from isobit.observers import MinMax
from isobit.quantizers.pact import Pact, PactQuantizer
from isobit.quantizers.protocol import Role
from quantizers.calibrating import observed
from quantizers.closed_forms.pact import CASES, expected


def calibrated(settings: Pact, scheme: Scheme, role: Role, x: Tensor) -> PactQuantizer:
    return observed(settings.build(scheme, role=role), MinMax(), x)


def data(scheme: Scheme, *shape: int) -> Tensor:
    x = torch.randn(*shape)
    return x if scheme.signed else x.abs()


@pytest.mark.parametrize("name", CASES)
def test_output_and_gradients_are_the_closed_form(name: str) -> None:
    settings, scheme, role = CASES[name]
    torch.manual_seed(0)
    seen = data(scheme, 6, 5, 3)
    quantizer = calibrated(settings, scheme, role, seen).double()
    x = (torch.randn(6, 5, 3, dtype=torch.float64) * 2).requires_grad_()
    upstream = torch.randn_like(x)
    learned = dict(quantizer.named_parameters())
    y = quantizer(x)
    grads = torch.autograd.grad(y, [x, *learned.values()], upstream)
    want = expected(quantizer, x, upstream)
    assert want.keys() == {"output", "x", *learned}
    torch.testing.assert_close(y.detach(), want["output"], rtol=1e-12, atol=1e-14)
    for parameter, grad in zip(["x", *learned], grads, strict=True):
        torch.testing.assert_close(grad, want[parameter], rtol=1e-12, atol=1e-14)
        assert grad.abs().sum() > 0


@pytest.mark.parametrize("name", CASES)
def test_output_is_what_the_declared_grid_makes_of_x(name: str) -> None:
    settings, scheme, role = CASES[name]
    torch.manual_seed(1)
    quantizer = calibrated(settings, scheme, role, data(scheme, 8, 9))
    x = torch.randn(8, 900) * 2
    y, grid = quantizer(x), quantizer.grid()
    assert torch.equal(grid.fake_quantize(x), y) and torch.equal(grid.fake_quantize(y), y)
    assert torch.equal(grid.dequantize(grid.quantize(x)), y)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_it_is_equations_1_and_2(bits: int) -> None:
    torch.manual_seed(0)
    x, alpha, steps = torch.randn(1000, dtype=torch.float64) * 2, 1.75, 2**bits - 1
    quantizer = calibrated(Pact(alpha=alpha), Scheme(bits=bits, signed=False), "activation", x.abs()).double()
    clipped = 0.5 * (x.abs() - (x - alpha).abs() + alpha)
    torch.testing.assert_close(quantizer(x), (clipped * steps / alpha).round() * alpha / steps, rtol=1e-6, atol=0)


def test_alpha_starts_at_the_end_of_the_calibrated_range_or_where_told() -> None:
    x = torch.tensor([0.0, 1.0, 3.0])
    scheme = Scheme(bits=4, adapt_sign=True)
    quantizer = calibrated(Pact(), scheme, "activation", x)
    assert quantizer.alpha.item() == pytest.approx(3.0) and not quantizer.grid().scheme.signed
    assert calibrated(Pact(alpha=8.0), scheme, "activation", x).alpha.item() == 8.0
    both = calibrated(Pact(alpha=6.0), Scheme(symmetric=False), "activation", torch.tensor([-1.0, 2.0]))
    assert both.beta is not None and (both.beta.item(), both.alpha.item()) == (-6.0, 6.0)
    one = calibrated(Pact(alpha=6.0), Scheme(symmetric=False), "activation", x)
    assert one.beta is not None and one.beta.item() == 0.0


def test_a_zero_lower_end_stays_where_it_is() -> None:
    quantizer = calibrated(Pact(), Scheme(symmetric=False), "activation", torch.rand(50))
    quantizer(torch.rand(50).sub(0.5).relu()).sum().backward()
    assert quantizer.beta is not None and quantizer.beta.grad is not None
    assert quantizer.beta.grad.item() == 0.0 and quantizer.grid().zero_point.item() == -128


def test_the_penalty_is_lambda_alpha_squared_and_replaces_weight_decay() -> None:
    scheme = Scheme(bits=4, granularity=PerChannel(0))
    quantizer = calibrated(Pact(decay=0.01), scheme, "weight", torch.tensor([[-1.0, 0.5], [0.1, 3.0]]))
    penalty = quantizer.penalty()
    assert penalty.item() == pytest.approx(0.01 * (1 + 9)) and penalty.shape == ()
    (grad,) = torch.autograd.grad(penalty, quantizer.alpha)
    torch.testing.assert_close(grad, 0.02 * quantizer.alpha.detach())
    assert Pact.weight_decay == quantizer.weight_decay == 0.0
    assert Pact(learning_rate_scale=0.1).build(Scheme()).learning_rate_scale == 0.1
    both = calibrated(Pact(decay=1.0), Scheme(symmetric=False), "activation", torch.tensor([-1.0, 2.0]))
    assert both.penalty().item() == pytest.approx(5.0, rel=0.02)


def test_the_penalty_shrinks_an_alpha_that_is_too_large_until_the_error_holds_it() -> None:
    torch.manual_seed(0)
    x = torch.randn(4000).relu()
    quantizer = calibrated(Pact(alpha=10.0, decay=0.001), Scheme(bits=4, signed=False), "activation", x)
    optimizer = torch.optim.SGD(quantizer.parameters(), lr=5.0)
    errors = []
    for _ in range(300):
        error = (quantizer(x) - x).square().mean()
        optimizer.zero_grad()
        (error + quantizer.penalty()).backward()
        optimizer.step()
        errors.append(error.item())
    assert 2.0 < quantizer.alpha.item() < 3.0
    assert errors[-1] < 0.2 * errors[0]


def test_alpha_that_crosses_zero_stays_usable() -> None:
    quantizer = calibrated(Pact(), Scheme(bits=4, signed=False), "activation", torch.rand(9))
    for alpha in (-1.5, 0.0):
        quantizer.alpha.data = torch.tensor(alpha)
        x = torch.rand(20)
        assert torch.equal(quantizer.grid().fake_quantize(x), quantizer(x))
    assert quantizer.grid().scale.item() > 0


def test_a_narrow_format_clips_at_minus_alpha() -> None:
    scheme = Scheme(bits=3, narrow=True)
    quantizer = Pact().build(scheme, role="weight")
    quantizer.calibrate(QParams(torch.tensor(0.5), torch.tensor(0, dtype=torch.int32), scheme))
    assert quantizer(torch.tensor([-9.0, 9.0])).tolist() == [-1.5, 1.5]


def test_a_narrow_format_of_either_sign_is_saved_and_loaded() -> None:
    scheme = Scheme(bits=4, narrow=True, adapt_sign=True)
    quantizer = calibrated(Pact(), scheme, "activation", torch.rand(10))
    fresh = Pact().build(scheme)
    fresh.load_state_dict(quantizer.state_dict())
    assert fresh.grid().scheme == quantizer.grid().scheme
    x = torch.randn(30)
    assert torch.equal(fresh(x), quantizer(x))


@pytest.mark.parametrize(
    ("scheme", "role", "text"),
    [
        (Scheme(bits=4, grid=PowersOfTwo()), "activation", "uniform grid"),
        (Scheme(rounding=Stochastic()), "activation", "rounding to nearest"),
        (Scheme(bits=1), "weight", "use 2 bits"),
        (Scheme(signed=False), "weight", "both signs"),
    ],
    ids=str,
)
def test_refusals(scheme: Scheme, role: Role, text: str) -> None:
    with pytest.raises(UnsupportedError, match=text):
        Pact().build(scheme, role=role)


@pytest.mark.parametrize("wrong", [{"alpha": 0.0}, {"alpha": -1.0}, {"decay": -0.1}, {"decay": float("nan")}])
def test_settings_are_checked(wrong: dict[str, float]) -> None:
    with pytest.raises(SettingError, match=next(iter(wrong))):
        Pact(**wrong)


def test_a_power_of_two_scale_stays_one() -> None:
    quantizer = calibrated(Pact(alpha=3.0), Scheme(bits=4, scale=PowerOfTwo()), "activation", torch.randn(9))
    assert quantizer.grid().scale.item() == 0.5


@pytest.mark.filterwarnings("ignore")  # the compiler's own warnings
@pytest.mark.parametrize("name", list(CASES)[::3])
def test_compiled_equals_eager_and_export_keeps_the_batch_dynamic(name: str) -> None:
    torch._dynamo.reset()
    settings, scheme, role = CASES[name]
    x = data(scheme, 6, 5)
    quantizer = calibrated(settings, scheme, role, x)
    eager = quantizer(x)
    (want,) = torch.autograd.grad(eager.sin().sum(), quantizer.alpha)
    compiled = torch.compile(quantizer, backend="aot_eager", fullgraph=True)
    y = compiled(x)
    (grad,) = torch.autograd.grad(y.sin().sum(), quantizer.alpha)
    assert torch.equal(y, eager) and torch.equal(grad, want)
    quantizer.eval()
    batch = ({0: torch.export.Dim("batch", min=1)},) if role == "activation" else None
    program = torch.export.export(quantizer, (x,), dynamic_shapes=batch).module()
    other = data(scheme, 11 if batch else 6, 5)
    assert torch.equal(program(other), quantizer(other))


@pytest.mark.parametrize("name", CASES)
def test_state_round_trips_into_a_fresh_module(name: str) -> None:
    settings, scheme, role = CASES[name]
    x = torch.randn(6, 40)
    quantizer = calibrated(settings, scheme, role, x)
    quantizer(x)
    fresh = settings.build(scheme, role=role).eval()
    fresh.load_state_dict(quantizer.eval().state_dict())
    assert torch.equal(fresh(x), quantizer(x)) and fresh.grid().scheme == quantizer.grid().scheme
