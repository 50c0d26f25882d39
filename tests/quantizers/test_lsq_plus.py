"""LSQ+: the offset on the integer grid, initial values, refusals, and what training the offset buys."""

import pytest
import torch
from torch import Tensor

from isobit.core.errors import UnsupportedError
from isobit.core.granularity import PerChannel
from isobit.core.grid import PowersOfTwo
from isobit.core.qparams import QParams, qparams_of_range
from isobit.core.scheme import Scheme
from isobit.observers import MeanStd, Mse
from isobit.quantizers.lsq_plus import LsqPlus, LsqPlusQuantizer
from quantizers.calibrating import observed
from quantizers.closed_forms.lsq_plus import CASES, expected

ASYMMETRIC = Scheme(bits=4, signed=False, symmetric=False)


def calibrated(x: Tensor, scheme: Scheme = ASYMMETRIC, *, role: str = "activation") -> LsqPlusQuantizer:
    return observed(LsqPlus().build(scheme, role=role), Mse(), x)  # type: ignore[arg-type]


def swish(count: int = 4096) -> Tensor:
    return torch.nn.functional.silu(2 * torch.randn(count, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_equations_4_and_5(case: str) -> None:
    torch.manual_seed(1)
    settings, scheme, role = CASES[case]
    x = torch.randn(6, 8, 5, dtype=torch.float64) + (0.3 if not scheme.signed else 0.0)
    quantizer = settings.build(scheme, role=role).double()
    axis = scheme.granularity.axis if isinstance(scheme.granularity, PerChannel) else None
    dims = [d for d in range(3) if d != axis]
    quantizer.calibrate(qparams_of_range(0.4 * x.amin(dims), 0.4 * x.amax(dims), scheme))  # type: ignore[operator]
    quantizer.double()
    for parameter in quantizer.parameters():
        parameter.data *= 1 + 0.1 * torch.rand_like(parameter)
    x.requires_grad_()
    upstream = torch.randn_like(x)
    y = quantizer(x)
    names = dict(quantizer.named_parameters())
    grads = torch.autograd.grad(y, [x, *names.values()], upstream)
    wanted = expected(quantizer, x.detach(), upstream)  # type: ignore[arg-type]
    torch.testing.assert_close(y.detach(), wanted.pop("output"), rtol=1e-12, atol=1e-12)
    found = dict(zip(["x", *names], grads, strict=True))
    assert found.keys() == wanted.keys()
    for name, grad in found.items():
        torch.testing.assert_close(grad, wanted[name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("training", [True, False])
def test_what_is_computed_is_what_the_declared_integers_give(training: bool) -> None:
    x = swish()
    quantizer = calibrated(x).train(training)
    quantizer.beta.data *= 1.37  # type: ignore[union-attr]
    quantizer.scale.data *= 0.81
    y, grid = quantizer(x).detach(), quantizer.grid()
    assert grid.zero_point.dtype == torch.int32
    assert grid.zero_point.item() == round(-quantizer.beta.item() / quantizer.scale.item())  # type: ignore[union-attr]
    assert torch.equal(y, grid.fake_quantize(x))
    assert torch.equal(y, grid.dequantize(grid.quantize(x)))


def test_an_offset_beyond_the_levels_gives_the_outermost_zero_point_and_still_learns() -> None:
    quantizer = calibrated(swish())
    quantizer.beta.data = torch.tensor(3.0)  # type: ignore[union-attr]
    assert quantizer.grid().zero_point.item() == 0
    (grad,) = torch.autograd.grad(quantizer(torch.tensor([[-1.0]])).sum(), quantizer.beta)  # type: ignore[arg-type]
    assert grad.item() > 0


def test_it_starts_at_the_observed_scale_and_offset() -> None:
    quantizer = LsqPlus().build(ASYMMETRIC)
    quantizer.calibrate(QParams(torch.tensor(0.25), torch.tensor(3, dtype=torch.int32), ASYMMETRIC))
    assert quantizer.scale.item() == 0.25
    assert quantizer.beta.item() == -0.75  # type: ignore[union-attr]


def test_weights_reach_three_standard_deviations_from_the_mean() -> None:
    w = 0.02 + 0.1 * torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    observer = MeanStd().build(Scheme(bits=4))
    observer.see(w)
    quantizer = LsqPlus().build(Scheme(bits=4), role="weight")
    quantizer.calibrate(observer.qparams())
    reach = max(abs(w.mean() - 3 * w.std()), abs(w.mean() + 3 * w.std()))
    torch.testing.assert_close(quantizer.grid().scale * 7, reach, rtol=1e-4, atol=0)


def test_a_symmetric_scheme_has_no_offset() -> None:
    quantizer = calibrated(swish(), Scheme(bits=4, signed=False))
    assert list(quantizer.state_dict()) == ["scale", "signed"]
    assert quantizer.grid().zero_point.item() == 0


def test_weights_are_symmetric_where_the_target_would_take_a_zero_point() -> None:
    assert LsqPlus().build(Scheme(symmetric=False), role="weight").scheme == Scheme()


def test_a_sign_that_depends_on_data_is_settled_and_survives_a_checkpoint() -> None:
    scheme = Scheme(bits=4, symmetric=False, adapt_sign=True, narrow=True)
    quantizer, x = calibrated(swish().relu(), scheme), swish().relu()
    assert not quantizer.grid().scheme.signed
    fresh = LsqPlus().build(scheme)
    fresh.load_state_dict(quantizer.state_dict())
    assert fresh.grid().scheme == quantizer.grid().scheme
    assert torch.equal(fresh(x), quantizer(x))


def test_learning_the_offset_reduces_the_error_below_that_of_the_scale_alone() -> None:
    x = swish()
    errors = {}
    for name, trained in {"scale": ["scale"], "scale and offset": ["scale", "beta"]}.items():
        quantizer = LsqPlus(damp=False).build(ASYMMETRIC)
        quantizer.calibrate(QParams(torch.tensor(0.6), torch.tensor(5, dtype=torch.int32), ASYMMETRIC))
        optimizer = torch.optim.Adam([dict(quantizer.named_parameters())[p] for p in trained], lr=0.01)
        for _ in range(300):
            optimizer.zero_grad()
            (quantizer(x) - x).square().mean().backward()
            optimizer.step()
        errors[name] = (quantizer(x) - x).square().mean().item()
    assert errors["scale and offset"] < 0.8 * errors["scale"]


@pytest.mark.filterwarnings("ignore")  # the compiler's own warnings
def test_compiled_and_exported_with_a_dynamic_batch_it_computes_the_same() -> None:
    x = swish().reshape(8, 512)
    quantizer = calibrated(x)
    y = quantizer(x)
    assert torch.equal(torch.compile(quantizer, backend="eager", fullgraph=True)(x), y)
    exported = torch.export.export(quantizer, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},)).module()
    assert torch.equal(exported(x), y)
    assert torch.equal(exported(x[:3]), y[:3])


@pytest.mark.parametrize(
    "scheme, role, message",
    [
        (ASYMMETRIC, "weight", "offsets of activations alone"),
        (Scheme(bits=1), "weight", "1 signed bit"),
        (Scheme(bits=4, grid=PowersOfTwo()), "activation", "uniform grid"),
    ],
)
def test_schemes_that_it_cannot_express_are_refused(scheme: Scheme, role: str, message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        LsqPlus().build(scheme, role=role)  # type: ignore[arg-type]
