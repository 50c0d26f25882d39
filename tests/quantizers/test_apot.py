"""APoT: initial thresholds, the levels that it declares, weight normalisation, and what it refuses."""

from dataclasses import replace

import pytest
import torch

from isobit.core.errors import SettingError, UnsupportedError
from isobit.core.granularity import PerChannel
from isobit.core.grid import PowersOfTwo
from isobit.core.qparams import qparams_of_range
from isobit.core.rounding import Floor
from isobit.core.scheme import PowerOfTwo, Scheme
from isobit.observers import OBSERVERS
from isobit.quantizers.apot import Apot, ApotQuantizer
from isobit.quantizers.protocol import Role


def calibrated(settings: Apot, scheme: Scheme, x: torch.Tensor, *, role: Role) -> ApotQuantizer:
    quantizer = settings.build(scheme, role=role)
    observer = OBSERVERS[Apot.observer]().build(quantizer.scheme)
    observer.see(x)
    quantizer.calibrate(observer.qparams())
    return quantizer


def test_thresholds_start_as_in_the_published_code() -> None:
    x = torch.randn(8, 30)
    weight = calibrated(Apot(), Scheme(bits=4), x, role="weight")
    activation = calibrated(Apot(), Scheme(bits=4, signed=False), x.abs(), role="activation")
    assert (weight.alpha.item(), activation.alpha.item()) == (3.0, 8.0)
    assert weight.grid().scale.item() == pytest.approx(3.0 / 10)
    assert activation.grid().scale.item() == pytest.approx(8.0 / 48)


def test_without_constants_thresholds_start_at_the_observed_range() -> None:
    x = torch.randn(4, 500)
    raw = calibrated(Apot(normalise_weights=False), Scheme(bits=4), x, role="weight")
    assert raw.alpha.item() == pytest.approx(min(3 * x.std(correction=0).item(), x.abs().max().item()), rel=0.05)
    observed = calibrated(Apot(activation_alpha=None), Scheme(bits=4, adapt_sign=True), x.abs(), role="activation")
    assert not observed.scheme.signed
    assert observed.alpha.item() == pytest.approx(observed.grid().range()[1].item())


@pytest.mark.parametrize("bits, highest", [(2, 1), (3, 4), (4, 10), (5, 48), (6, 100)])
def test_exported_weights_are_sums_of_powers_of_two(bits: int, highest: int) -> None:
    """The integers come from the forward pass, not from the raw weight, and give it back to the bit."""
    w = torch.randn(16, 40) * 0.05 + 0.01
    quantizer = calibrated(Apot(weight_alpha=1.5), Scheme(bits=bits), w, role="weight").eval()
    y, grid = quantizer(w).detach(), quantizer.grid()
    integers = grid.quantize(y)
    assert torch.equal(grid.dequantize(integers), y)
    assert integers.abs().max() == highest
    assert all(int(level).bit_count() <= (bits - 1 + 1) // 2 for level in integers.abs().unique())


def test_two_bit_weights_are_ternary_with_the_threshold_in_the_middle() -> None:
    w = torch.tensor([-2.0, -0.6, -0.4, 0.0, 0.4, 0.6, 2.0])
    quantizer = calibrated(Apot(normalise_weights=False), Scheme(bits=2), w, role="weight")
    quantizer.alpha.data = torch.tensor(1.0)
    assert quantizer(w).tolist() == [-1.0, -1.0, 0.0, 0.0, 0.0, 1.0, 1.0]


def test_normalised_weights_depend_on_neither_scale_nor_mean() -> None:
    w = torch.randn(8, 30, dtype=torch.float64)
    quantizer = calibrated(Apot(weight_alpha=2.0), Scheme(bits=4), w, role="weight").double()
    torch.testing.assert_close(quantizer(w * 0.01 + 5), quantizer(w))
    raw = calibrated(Apot(normalise_weights=False), Scheme(bits=4), w, role="weight").double()
    assert not torch.allclose(raw(w * 0.01 + 5), raw(w))


def test_equal_weights_stay_finite() -> None:
    w = torch.full((4, 4), 0.3)
    assert torch.isfinite(calibrated(Apot(), Scheme(bits=4), w, role="weight")(w)).all()


def test_clipped_weights_get_a_gradient_and_clipped_activations_none() -> None:
    x = torch.tensor([0.5, 9.0, -9.0], requires_grad=True)
    for settings, role, expected in [
        (Apot(normalise_weights=False), "weight", [1.0, 1.0, 1.0]),
        (Apot(normalise_weights=False, clip_weight_gradient=True), "weight", [1.0, 0.0, 0.0]),
        (Apot(), "activation", [1.0, 0.0, 0.0]),
    ]:
        quantizer = calibrated(settings, Scheme(bits=4), x.detach(), role=role)  # type: ignore[arg-type]
        quantizer.alpha.data = torch.tensor(2.0)
        (grad,) = torch.autograd.grad(quantizer(x).sum(), x)
        assert grad.tolist() == expected


def test_training_the_threshold_lowers_the_error() -> None:
    torch.manual_seed(0)
    w = torch.randn(64, 64)
    quantizer = calibrated(Apot(weight_alpha=6.0), Scheme(bits=3), w, role="weight")
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=0.02)
    target = (w - w.mean()) / w.std()
    errors = []
    for _ in range(150):
        optimizer.zero_grad()
        error = (quantizer(w) - target).square().mean()
        error.backward()
        optimizer.step()
        errors.append(error.item())
    assert errors[-1] < 0.4 * errors[0]


def test_a_threshold_that_crosses_zero_stays_usable() -> None:
    quantizer = calibrated(Apot(), Scheme(bits=4), torch.randn(5, 5), role="weight")
    quantizer.alpha.data = torch.tensor(-2.0)
    assert quantizer.grid().scale.item() == pytest.approx(0.2)


def test_per_channel_thresholds() -> None:
    w = torch.randn(4, 50)
    quantizer = calibrated(Apot(), Scheme(bits=4, granularity=PerChannel(0)), w, role="weight")
    assert quantizer.alpha.tolist() == [3.0] * 4
    assert all(row.unique().numel() <= 15 for row in quantizer(w))


def test_activations_that_are_not_numbers_stay_so() -> None:
    """A diverged network shows it, instead of going on with some level."""
    x = torch.randn(9)
    quantizer = calibrated(Apot(), Scheme(bits=4), x, role="activation")
    assert quantizer(torch.where(x > 0, float("nan"), x)).isnan().any()


@pytest.mark.parametrize(
    "scheme, role, message",
    [
        (Scheme(bits=8), "weight", "2 to 6 bits"),
        (Scheme(bits=1), "weight", "2 to 6 bits"),
        (Scheme(bits=6, signed=False), "activation", "1 to 5 bits"),
        (Scheme(bits=6, adapt_sign=True), "activation", "2 to 5 bits"),
        (Scheme(bits=4, signed=False), "weight", "both signs"),
        (Scheme(bits=4, symmetric=False), "activation", "zero point"),
        (Scheme(bits=4, scale=PowerOfTwo()), "weight", "powers of two"),
        (Scheme(bits=4, grid=PowersOfTwo()), "weight", "levels of its own"),
        (Scheme(bits=4, rounding=Floor()), "weight", "levels of its own"),
    ],
)
def test_schemes_that_apot_cannot_express_are_refused(scheme: Scheme, role: Role, message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        Apot().build(scheme, role=role)


@pytest.mark.parametrize("settings", [{"weight_alpha": 0.0}, {"activation_alpha": -1.0}])
def test_thresholds_start_above_zero(settings: dict[str, float]) -> None:
    with pytest.raises(SettingError, match="above 0"):
        Apot(**settings)  # type: ignore[arg-type]


def test_a_fresh_module_loads_the_settled_sign() -> None:
    scheme = Scheme(bits=4, adapt_sign=True)
    x = torch.rand(4, 9) * 9
    quantizer = calibrated(Apot(), scheme, x, role="activation")
    fresh = Apot().build(scheme, role="activation")
    fresh.load_state_dict(quantizer.state_dict())
    assert fresh.scheme == replace(quantizer.scheme, signed=False)
    assert torch.equal(fresh(x), quantizer(x))


@pytest.mark.filterwarnings("ignore")  # the compiler's own warnings
def test_compiled_and_exported_give_the_eager_values() -> None:
    scheme = Scheme(bits=4, signed=False)
    x = torch.rand(6, 9) * 9
    quantizer = calibrated(Apot(), scheme, x, role="activation").eval()
    assert torch.equal(torch.compile(quantizer, backend="eager", fullgraph=True)(x), quantizer(x))
    program = torch.export.export(quantizer, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    assert torch.equal(program.module()(x[:4]), quantizer(x[:4]))
    w = torch.randn(6, 9)
    weight = calibrated(Apot(), Scheme(bits=4), w, role="weight")
    assert torch.equal(torch.compile(weight, backend="eager", fullgraph=True)(w), weight(w))


def test_a_narrow_scheme_is_no_other_grid() -> None:
    """The signed levels are symmetric already."""
    quantizer = Apot().build(Scheme(bits=4, narrow=True), role="weight")
    quantizer.calibrate(qparams_of_range(torch.tensor(-1.0), torch.tensor(1.0), Scheme(bits=4, narrow=True)))
    assert quantizer.grid().scheme.levels == Apot().build(Scheme(bits=4), role="weight").scheme.levels
