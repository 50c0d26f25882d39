"""The contract of every quantizer in the table."""

import importlib
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
import torch
from safetensors.torch import load, save

from isobit.core.errors import CalibrationError, UnsupportedError
from isobit.core.granularity import PerChannel, PerTensor
from isobit.core.grid import PowersOfTwo
from isobit.core.qparams import QParams, qparams_of_range
from isobit.core.scheme import PowerOfTwo, Scheme
from isobit.quantizers import QUANTIZERS, Quantizer, QuantizerSettings, Role

gradients: Any = importlib.import_module("gradient_table")

ROLES: tuple[Role, ...] = ("weight", "activation")
SCHEMES = {
    "s8": Scheme(),
    "s2": Scheme(bits=2),
    "s1": Scheme(bits=1),
    "u4": Scheme(bits=4, signed=False),
    "u8 asymmetric": Scheme(signed=False, symmetric=False),
    "s4 per-channel": Scheme(bits=4, granularity=PerChannel(0)),
    "s8 2^n": Scheme(scale=PowerOfTwo()),
    "s8 adapt": Scheme(adapt_sign=True),
    "s4 logarithmic": Scheme(bits=4, grid=PowersOfTwo()),
}
LEARNED = sorted(QUANTIZERS.keys() - {"fixed", "dynamic"})
FORMS = gradients.closed_forms()
CASES = [(name, case) for name, form in FORMS.items() for case in form.CASES]


def taken(name: str, role: Role) -> list[Scheme]:
    """The schemes that a quantizer does not refuse in a role; a refusal is a sentence."""
    found = []
    for scheme in SCHEMES.values():
        try:
            QUANTIZERS[name]().build(scheme, role=role)
        except UnsupportedError as refused:
            assert len(str(refused)) > 20
        else:
            found.append(scheme)
    return found


def calibrated(name: str, scheme: Scheme, role: Role, x: torch.Tensor) -> torch.nn.Module:
    quantizer = QUANTIZERS[name]().build(scheme, role=role)
    low, high = (x.amin(), x.amax()) if isinstance(scheme.granularity, PerTensor) else (x.amin(1), x.amax(1))
    quantizer.calibrate(qparams_of_range(low, high, quantizer.scheme))
    if callable(start := getattr(quantizer, "start", None)):
        start(x)
    return quantizer


def a_build(name: str) -> tuple[QuantizerSettings, Scheme, Role]:
    """Settings with a scheme and a role that they take."""
    if name not in FORMS:
        return QUANTIZERS[name](), Scheme(), "activation"
    found: tuple[QuantizerSettings, Scheme, Role] = next(iter(FORMS[name].CASES.values()))
    return found


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("name", QUANTIZERS)
def test_output_lies_on_the_declared_grid(name: str, role: Role) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 257)
    for scheme in taken(name, role):
        quantizer = calibrated(name, scheme, role, x).eval()
        y = quantizer(x)
        grid = quantizer.grid()
        rows = [y] if isinstance(scheme.granularity, PerTensor) else list(y)
        assert all(row.unique().numel() <= 2**scheme.bits for row in rows), scheme
        if isinstance(grid, QParams):
            assert torch.equal(grid.dequantize(grid.quantize(y)), y), scheme
            assert torch.equal(grid.fake_quantize(y), y), scheme
            assert set(grid.quantize(x).unique().tolist()) <= set(grid.scheme.levels), scheme
            if role == "activation" or name == "fixed":  # an engine sees x itself; weights may be transformed before
                assert torch.equal(grid.fake_quantize(x), y), scheme


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("name", QUANTIZERS)
def test_state_round_trips_into_a_fresh_module(name: str, role: Role) -> None:
    x = torch.randn(4, 33).abs()
    for scheme in taken(name, role):
        quantizer = calibrated(name, scheme, role, x).eval()
        fresh = QUANTIZERS[name]().build(scheme, role=role).eval()
        state = {k: v.contiguous() for k, v in quantizer.state_dict().items()}
        fresh.load_state_dict(load(save(state)) if state else {})
        assert torch.equal(fresh(x), quantizer(x)), scheme
        assert fresh.grid().scheme == quantizer.grid().scheme


@pytest.mark.parametrize("name", QUANTIZERS)
def test_settings_are_frozen_and_the_protocols_hold(name: str) -> None:
    settings, scheme, role = a_build(name)
    assert isinstance(settings, QuantizerSettings)
    assert isinstance(settings.build(scheme, role=role), Quantizer)
    with pytest.raises((FrozenInstanceError, AttributeError, TypeError)):
        settings.observer = "other"  # type: ignore[misc]


@pytest.mark.parametrize("name", sorted(QUANTIZERS.keys() - {"dynamic"}))
def test_running_before_calibration_is_an_error(name: str) -> None:
    settings, scheme, role = a_build(name)
    with pytest.raises(CalibrationError, match="before it was calibrated"):
        settings.build(scheme, role=role)(torch.zeros(2, 2))


@pytest.mark.parametrize("name", QUANTIZERS)
def test_some_scheme_is_taken(name: str) -> None:
    assert taken(name, "weight") or taken(name, "activation")


@pytest.mark.parametrize("name", ["fixed", "dynamic"])
def test_gradient_to_the_input_is_straight_through(name: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 50, dtype=torch.float64).requires_grad_()
    quantizer = calibrated(name, Scheme(bits=3), "activation", x.detach()).double()
    upstream = torch.randn_like(x)
    (grad,) = torch.autograd.grad(quantizer(x), x, upstream)
    scale = x.detach().abs().max().float().double() / 3
    u = x.detach() / (scale if name == "dynamic" else quantizer.grid().scale.double())
    inside = (u > -4) & (u < 3)
    at_the_end = (u.abs() - 3).abs() < 1e-6  # the largest value, which the rounding of the scale puts on either side
    assert torch.equal(grad[~at_the_end], (upstream * inside)[~at_the_end])


@pytest.mark.parametrize(("name", "case"), CASES)
def test_output_and_gradients_are_the_closed_form(name: str, case: str) -> None:
    found = gradients.errors(FORMS[name], case)
    assert max(found.values()) <= gradients.BAR, found


def test_every_quantizer_that_learns_has_a_closed_form() -> None:
    assert sorted(FORMS) == LEARNED
