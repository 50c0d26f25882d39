"""TQT: power-of-two scales, initial thresholds, refusals, and the range-precision trade-off of its gradient."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from isobit.core.errors import UnsupportedError
from isobit.core.granularity import PerChannel
from isobit.core.grid import PowersOfTwo
from isobit.core.qparams import QParams, qparams_of_range
from isobit.core.rounding import HalfAway
from isobit.core.scheme import PowerOfTwo, Scheme
from isobit.observers import MinMax
from isobit.quantizers.tqt import Tqt, TqtQuantizer
from quantizers.calibrating import observed
from quantizers.closed_forms.tqt import CASES, expected


def calibrated(x: Tensor, scheme: Scheme) -> TqtQuantizer:
    return observed(Tqt().build(scheme), MinMax(), x)


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_equations_7_and_8(case: str) -> None:
    torch.manual_seed(1)
    settings, scheme, role = CASES[case]
    x = torch.randn(6, 8, 5, dtype=torch.float64)
    quantizer = settings.build(scheme, role=role)
    axis = scheme.granularity.axis if isinstance(scheme.granularity, PerChannel) else None
    dims = [d for d in range(3) if d != axis]
    quantizer.calibrate(  # type: ignore[operator]
        qparams_of_range(0.3 * x.amin(dims), 0.3 * x.amax(dims), quantizer.scheme)  # type: ignore[arg-type]
    )
    quantizer.double()
    x.requires_grad_()
    upstream = torch.randn_like(x)
    y = quantizer(x)
    grads = torch.autograd.grad(y, [x, quantizer.log2_t], upstream)  # type: ignore[list-item]
    wanted = expected(quantizer, x.detach(), upstream)  # type: ignore[arg-type]
    torch.testing.assert_close(y.detach(), wanted["output"], rtol=0, atol=0)
    torch.testing.assert_close(grads[0], wanted["x"], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(grads[1], wanted["log2_t"], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "largest, scheme, scale",
    [
        (1.0, Scheme(), 2**-7),
        (1.0, Scheme(bits=4), 2**-3),
        (1.0, Scheme(signed=False), 2**-8),
        (1.01, Scheme(), 2**-6),
        (0.7, Scheme(bits=4), 2**-3),
        (6.0, Scheme(signed=False), 2**-5),
        (3.0, Scheme(bits=2, signed=False), 2**0),
    ],
)
def test_the_initial_scale_is_the_next_power_of_two_above_the_threshold(
    largest: float, scheme: Scheme, scale: float
) -> None:
    x = torch.linspace(0 if not scheme.signed else -largest / 2, largest, 101)
    quantizer = calibrated(x, scheme)
    assert 2 ** quantizer.log2_t.item() == pytest.approx(largest, rel=1e-5)
    assert quantizer.grid().scale.item() == scale
    assert isinstance(quantizer.grid().scheme.scale, PowerOfTwo)


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("signed", [True, False])
def test_a_calibrated_power_of_two_scale_is_kept(bits: int, signed: bool) -> None:
    scheme = Scheme(bits=bits, signed=signed, scale=PowerOfTwo())
    quantizer = Tqt().build(scheme)
    quantizer.calibrate(QParams(torch.tensor(2.0**-5), torch.tensor(0, dtype=torch.int32), scheme))
    assert quantizer.grid().scale.item() == 2**-5


def test_values_within_half_a_step_of_the_outer_levels_still_carry_gradient() -> None:
    quantizer = Tqt().build(Scheme(bits=4))
    quantizer.log2_t.data = torch.tensor(3.0)
    x = torch.tensor([-8.6, -8.4, 7.4, 7.6], requires_grad=True)
    (grad,) = torch.autograd.grad(quantizer(x).sum(), x)
    assert grad.tolist() == [0, 1, 1, 0]


def test_every_scale_is_an_exact_power_of_two() -> None:
    quantizer = Tqt().build(Scheme(granularity=PerChannel(0)))
    quantizer.log2_t.data = torch.linspace(-80.3, 80.3, 321)
    scales = quantizer.grid().scale.numpy()
    assert (np.frexp(scales)[0] == 0.5).all()
    assert (np.frexp(scales)[1] == np.ceil(quantizer.log2_t.detach().numpy()) - 7 + 1).all()


@pytest.mark.parametrize("start", [-2.5, 4.5])
def test_the_threshold_settles_where_the_error_is_least(start: float) -> None:
    """Section 3.4: the gradient trades range for precision from either side."""
    x = torch.randn(4096, generator=torch.Generator().manual_seed(0))
    quantizer = Tqt().build(Scheme(bits=4))
    quantizer.log2_t.data = torch.tensor(start)

    def error(log2_t: float) -> float:
        scale = 2.0 ** (math.ceil(log2_t) - 3)
        return ((x / scale).round().clamp(-8, 7) * scale - x).square().mean().item()

    optimizer = torch.optim.Adam(quantizer.parameters(), lr=0.05)
    for _ in range(400):
        optimizer.zero_grad()
        (quantizer(x) - x).square().mean().backward()
        optimizer.step()
    best = min(range(-4, 6), key=error)
    edges = best - 1, best  # the sign of the gradient changes at an edge of the best interval: it oscillates there
    assert min(abs(quantizer.log2_t.item() - edge) for edge in edges) < 0.1
    assert error(quantizer.log2_t.item()) < 0.2 * error(start)


def test_a_sign_that_depends_on_data_is_settled_and_survives_a_checkpoint() -> None:
    x, scheme = torch.rand(4, 50), Scheme(adapt_sign=True, narrow=True)
    quantizer, fresh = calibrated(x, scheme), Tqt().build(scheme)
    assert not quantizer.grid().scheme.signed
    fresh.load_state_dict(quantizer.state_dict())
    assert fresh.grid().scheme == quantizer.grid().scheme
    assert torch.equal(fresh(x), quantizer(x))
    assert torch.equal(quantizer.grid().fake_quantize(x), quantizer(x))


@pytest.mark.filterwarnings("ignore")  # the compiler's own warnings
def test_compiled_and_exported_with_a_dynamic_batch_it_computes_the_same() -> None:
    x = torch.randn(8, 64)
    quantizer = calibrated(x, Scheme(bits=4))
    y = quantizer(x)
    assert torch.equal(torch.compile(quantizer, backend="eager", fullgraph=True)(x), y)
    exported = torch.export.export(quantizer, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},)).module()
    assert torch.equal(exported(x), y)
    assert torch.equal(exported(x[:3]), y[:3])


@pytest.mark.parametrize(
    "scheme, message",
    [
        (Scheme(signed=False, symmetric=False), "no zero point"),
        (Scheme(bits=1, signed=False), "1 bit"),
        (Scheme(bits=4, grid=PowersOfTwo()), "uniform grid"),
        (Scheme(rounding=HalfAway()), "half to even"),
    ],
)
def test_schemes_that_it_cannot_express_are_refused(scheme: Scheme, message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        Tqt().build(scheme)
