"""Logarithmic: levels that a shift multiplies, what is learned, and what it refuses."""

import pytest
import torch

from isobit.core.errors import UnsupportedError
from isobit.core.granularity import PerChannel, PerGroup
from isobit.core.grid import Codebook, PowersOfTwo
from isobit.core.rounding import Floor
from isobit.core.scheme import PowerOfTwo, Scheme
from isobit.observers import OBSERVERS
from isobit.quantizers.logarithmic import Logarithmic, LogarithmicQuantizer
from isobit.quantizers.protocol import Role


def calibrated(scheme: Scheme, x: torch.Tensor, *, role: Role, observer: str = "mean_abs") -> LogarithmicQuantizer:
    quantizer = Logarithmic().build(scheme, role=role)
    seen = OBSERVERS[observer]().build(quantizer.scheme)
    seen.see(x)
    quantizer.calibrate(seen.qparams())
    return quantizer


def test_every_level_is_a_power_of_two_below_the_largest_value() -> None:
    w = torch.tensor([-0.8, -0.31, -0.29, -0.01, 0.0, 0.012, 0.013, 0.14, 0.16, 0.8])
    quantizer = calibrated(Scheme(bits=4), w, role="weight", observer="min_max")
    wanted = torch.tensor([-64, -32, -16, -1, 0, 1, 1, 8, 16, 64])  # the threshold of 8 and 16 is 12, which is 0.15
    assert quantizer.grid().quantize(w).tolist() == wanted.tolist()
    torch.testing.assert_close(quantizer(w).detach(), wanted * (0.8 / 64))


def test_alpha_starts_at_the_observed_range() -> None:
    w = torch.randn(4, 500)
    assert calibrated(Scheme(bits=5), w, role="weight", observer="min_max").alpha.item() == pytest.approx(w.abs().max())
    start = calibrated(Scheme(bits=4), w, role="weight").alpha.item()
    assert start == pytest.approx(2 * w.abs().mean().item() * 7**0.5)  # 7 positive levels


def test_the_output_error_is_a_third_at_most_between_levels() -> None:
    """Between two neighbours 2^k and 2^(k+1), the farthest value is 1.5 · 2^k."""
    x = torch.rand(5000) * 0.98 + 0.02
    quantizer = calibrated(Scheme(bits=3, signed=False), x, role="activation", observer="min_max")
    relative = ((quantizer(x).detach() - x) / x).abs()
    assert 0.33 < relative.max().item() <= 1 / 3 + 1e-6


def test_a_power_of_two_scheme_leaves_shifts_alone() -> None:
    w = torch.randn(3, 40)
    quantizer = calibrated(Scheme(bits=4, scale=PowerOfTwo(), granularity=PerChannel(0)), w, role="weight")
    y = quantizer(w).detach()
    exponents = y[y != 0].abs().log2()
    assert torch.equal(exponents, exponents.round())
    assert torch.equal(quantizer.grid().scale.log2(), quantizer.grid().scale.log2().round())


def test_groups_learn_each_their_own_largest_value() -> None:
    w = torch.randn(4, 16) * torch.tensor([1.0, 10.0]).repeat_interleave(8)
    quantizer = calibrated(Scheme(bits=4, granularity=PerGroup(1, 8)), w, role="weight")
    assert quantizer.alpha.shape == (4, 2)
    assert bool((quantizer.alpha[:, 1] > quantizer.alpha[:, 0]).all())
    assert torch.equal(quantizer.grid().fake_quantize(quantizer(w)), quantizer(w))


@pytest.mark.parametrize(("bits", "off"), [(2, 4.0), (3, 4.0), (4, 0.25), (6, 0.05)])
def test_training_alpha_lowers_the_error(bits: int, off: float) -> None:
    """From a range too wide or, where there are levels enough for it to matter little, too narrow."""
    torch.manual_seed(0)
    w = torch.randn(64, 64) * 0.02
    quantizer = calibrated(Scheme(bits=bits), w, role="weight")
    quantizer.alpha.data *= off
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=2e-3)
    errors = []
    for _ in range(150):
        optimizer.zero_grad()
        error = (quantizer(w) - w).square().sum()
        error.backward()
        optimizer.step()
        errors.append(error.item())
    assert errors[-1] < 0.6 * errors[0]


def test_the_gradient_of_alpha_is_damped_by_what_shares_it() -> None:
    x = torch.rand(7, 3, 5)
    grads = []
    for damp in (True, False):
        quantizer = Logarithmic(damp=damp).build(Scheme(bits=3, signed=False), role="activation")
        quantizer.load_state_dict(calibrated(Scheme(bits=3, signed=False), x, role="activation").state_dict())
        grads.append(torch.autograd.grad(quantizer(x).sum(), quantizer.alpha)[0].item())
    assert grads[0] == pytest.approx(grads[1] / 15**0.5)


def test_an_alpha_that_crosses_zero_stays_usable() -> None:
    quantizer = calibrated(Scheme(bits=4), torch.randn(9), role="weight")
    quantizer.alpha.data = torch.tensor(-2.0)
    assert quantizer.grid().scale.item() == 2.0 / 64


def test_activations_take_the_sign_that_was_seen_and_a_fresh_module_loads_it() -> None:
    scheme = Scheme(bits=4, adapt_sign=True)
    for x, highest in [(torch.rand(5, 9), 2**14), (torch.randn(5, 9), 2**6)]:
        quantizer = calibrated(scheme, x, role="activation")
        assert quantizer.scheme.quant_max == highest
        fresh = Logarithmic().build(scheme, role="activation")
        fresh.load_state_dict(quantizer.state_dict())
        assert fresh.scheme == quantizer.scheme
        assert torch.equal(fresh(x), quantizer(x))


@pytest.mark.parametrize(
    "scheme, role, message",
    [
        (Scheme(bits=7), "weight", "2 to 6 bits, not 7"),
        (Scheme(bits=1), "weight", "2 to 6 bits, not 1"),
        (Scheme(bits=8), "activation", "2 to 4 bits, not 8"),
        (Scheme(bits=5, signed=False), "activation", "1 to 4 bits, not 5"),
        (Scheme(bits=5, adapt_sign=True), "activation", "2 to 4 bits, not 5"),
        (Scheme(bits=4, signed=False), "weight", "both signs"),
        (Scheme(bits=4, symmetric=False), "activation", "symmetric scheme"),
        (Scheme(bits=4, grid=Codebook()), "weight", "levels of its own"),
        (Scheme(bits=4, rounding=Floor()), "weight", "levels of its own"),
    ],
)
def test_schemes_that_have_no_powers_of_two_are_refused(scheme: Scheme, role: Role, message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        Logarithmic().build(scheme, role=role)


def test_a_narrow_scheme_is_no_other_grid() -> None:
    """The signed levels are symmetric already, and weights keep their sign whatever was seen."""
    quantizer = calibrated(Scheme(bits=3, narrow=True, adapt_sign=True), torch.rand(9), role="weight")
    assert quantizer.scheme == Scheme(bits=3, grid=PowersOfTwo())


@pytest.mark.filterwarnings("ignore")  # the compiler's own warnings
def test_compiled_and_exported_give_the_eager_values() -> None:
    x = torch.rand(6, 9)
    quantizer = calibrated(Scheme(bits=4, signed=False), x, role="activation").eval()
    assert torch.equal(torch.compile(quantizer, backend="eager", fullgraph=True)(x), quantizer(x))
    program = torch.export.export(quantizer, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    assert torch.equal(program.module()(x[:4]), quantizer(x[:4]))
    w = torch.randn(6, 9)
    weight = calibrated(Scheme(bits=4), w, role="weight")
    assert torch.equal(torch.compile(weight, backend="eager", fullgraph=True)(w), weight(w))
