"""The contract of every quantizer in the table."""

from dataclasses import FrozenInstanceError

import pytest
import torch
from safetensors.torch import load, save

from isobit.core.errors import CalibrationError, UnsupportedError
from isobit.core.granularity import PerChannel, PerTensor
from isobit.core.grid import PowersOfTwo
from isobit.core.qparams import QParams, qparams_of_range
from isobit.core.scheme import PowerOfTwo, Scheme
from isobit.quantizers import QUANTIZERS, Quantizer, QuantizerSettings

SCHEMES = {
    "s8": Scheme(),
    "s2": Scheme(bits=2),
    "u4": Scheme(bits=4, signed=False),
    "u8 asymmetric": Scheme(signed=False, symmetric=False),
    "s4 per-channel": Scheme(bits=4, granularity=PerChannel(0)),
    "s8 2^n": Scheme(scale=PowerOfTwo()),
    "s8 adapt": Scheme(adapt_sign=True),
    "s4 logarithmic": Scheme(bits=4, grid=PowersOfTwo()),
}


def calibrated(name: str, scheme: Scheme, x: torch.Tensor) -> torch.nn.Module:
    try:
        quantizer = QUANTIZERS[name]().build(scheme)
    except UnsupportedError as refused:
        pytest.skip(f"refused, as its settings say: {refused}")
    low, high = (x.amin(), x.amax()) if isinstance(scheme.granularity, PerTensor) else (x.amin(1), x.amax(1))
    quantizer.calibrate(qparams_of_range(low, high, scheme))
    return quantizer


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
@pytest.mark.parametrize("name", QUANTIZERS)
def test_output_lies_on_the_declared_grid(name: str, scheme: Scheme) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 257)
    quantizer = calibrated(name, scheme, x).eval()
    y = quantizer(x)
    grid = quantizer.grid()
    rows = [y] if isinstance(scheme.granularity, PerTensor) else list(y)
    assert all(row.unique().numel() <= 2**scheme.bits for row in rows)
    if isinstance(grid, QParams):
        torch.testing.assert_close(grid.dequantize(grid.quantize(y)), y, rtol=0, atol=0)
        assert set(grid.quantize(x).unique().tolist()) <= set(grid.scheme.levels)
        torch.testing.assert_close(grid.fake_quantize(x), y, rtol=0, atol=0)


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
@pytest.mark.parametrize("name", QUANTIZERS)
def test_state_round_trips_into_a_fresh_module(name: str, scheme: Scheme) -> None:
    x = torch.randn(4, 33).abs()
    quantizer = calibrated(name, scheme, x).eval()
    fresh = QUANTIZERS[name]().build(scheme).eval()
    state = {k: v.contiguous() for k, v in quantizer.state_dict().items()}
    fresh.load_state_dict(load(save(state)) if state else {})
    assert torch.equal(fresh(x), quantizer(x))


@pytest.mark.parametrize("name", QUANTIZERS)
def test_settings_are_frozen_and_the_protocols_hold(name: str) -> None:
    settings = QUANTIZERS[name]()
    assert isinstance(settings, QuantizerSettings)
    assert isinstance(settings.build(Scheme()), Quantizer)
    with pytest.raises((FrozenInstanceError, AttributeError, TypeError)):
        settings.observer = "other"  # type: ignore[misc]


@pytest.mark.parametrize("name", sorted(QUANTIZERS.keys() - {"dynamic"}))
def test_running_before_calibration_is_an_error(name: str) -> None:
    with pytest.raises(CalibrationError, match="before it was calibrated"):
        QUANTIZERS[name]().build(Scheme())(torch.zeros(2, 2))


@pytest.mark.parametrize("name", QUANTIZERS)
def test_gradient_to_the_input_is_straight_through(name: str) -> None:
    x = (torch.randn(4, 50, dtype=torch.float64)).requires_grad_()
    quantizer = calibrated(name, Scheme(bits=3), x.detach()).double()
    upstream = torch.randn_like(x)
    (grad,) = torch.autograd.grad(quantizer(x), x, upstream)
    scale = x.detach().abs().max().float().double() / 3
    u = x.detach() / (scale if name == "dynamic" else quantizer.grid().scale.double())
    inside = (u > -4) & (u < 3)
    assert torch.equal(grad, upstream * inside)
