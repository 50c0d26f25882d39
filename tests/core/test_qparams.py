"""Ranges to parameters, and integers, against numpy and torch's own quantized tensors."""

import numpy as np
import pytest
import torch

from isobit.core.errors import CalibrationError, SettingError
from isobit.core.granularity import PerChannel, PerGroup, blocks, from_blocks
from isobit.core.grid import PowersOfTwo
from isobit.core.qparams import QParams, qparams_of_range
from isobit.core.scheme import PowerOfTwo, Scheme


def test_the_outlier_demo() -> None:
    """One value of 50 makes 1.0 and 1.05 the same integer; without it they differ (SOURCES 69)."""
    scheme = Scheme(signed=False, symmetric=False)
    for high, scale in ((5.0, 0.0196), (50.0, 0.196)):
        x = torch.tensor([0.0, 1.0, 1.05, high])
        p = qparams_of_range(x.min(), x.max(), scheme)
        assert p.scale.item() == pytest.approx(scale, rel=1e-2)
        q = p.quantize(x).tolist()
        assert (q[1] == q[2]) == (high == 50.0)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_asymmetric_covers_the_range_to_half_a_step(bits: int, signed: bool) -> None:
    scheme = Scheme(bits=bits, signed=signed, symmetric=False)
    rng = np.random.default_rng(bits)
    for _ in range(50):
        low, high = sorted(rng.normal(size=2))
        low, high = min(low, 0.0), max(high, 0.0)
        p = qparams_of_range(torch.tensor(low), torch.tensor(high), scheme)
        lowest, highest = p.range()
        step = (high - low) / (2**bits - 1)
        assert p.scale.item() == pytest.approx(step, rel=1e-6)
        assert abs(lowest.item() - low) <= step / 2 * 1.001
        assert abs(highest.item() - high) <= step / 2 * 1.001
        assert p.dequantize(p.quantize(torch.zeros(1))).item() == 0.0


def test_integers_equal_torch_quantize_per_channel() -> None:
    x = torch.randn(6, 5)
    scheme = Scheme(granularity=PerChannel(0))
    p = qparams_of_range(x.amin(1), x.amax(1), scheme)
    expected = np.clip(np.rint(x.numpy() / p.scale.numpy()[:, None]), -128, 127)
    assert np.array_equal(p.quantize(x).numpy(), expected)
    assert torch.equal(p.dequantize(p.quantize(x)), p.fake_quantize(x))


def test_power_of_two_scales_are_the_nearest_power() -> None:
    p = qparams_of_range(
        torch.tensor([-3.0, -0.1]), torch.tensor([1.0, 0.9]), Scheme(scale=PowerOfTwo(), granularity=PerChannel(0))
    )
    expected = 2.0 ** np.round(np.log2(np.array([3.0, 0.9]) / 127))
    assert np.array_equal(p.scale.numpy(), expected.astype(np.float32))


def test_adaptive_sign_becomes_unsigned_without_negatives() -> None:
    scheme = Scheme(bits=4, adapt_sign=True)
    positive = qparams_of_range(torch.tensor(0.0), torch.tensor(3.0), scheme)
    assert (positive.scheme.signed, positive.scale.item()) == (False, pytest.approx(3 / 15))
    mixed = qparams_of_range(torch.tensor(-1.0), torch.tensor(3.0), scheme)
    assert (mixed.scheme.signed, mixed.scale.item()) == (True, pytest.approx(3 / 7))


def test_a_range_of_zero_gets_a_scale_of_one() -> None:
    assert qparams_of_range(torch.tensor(0.0), torch.tensor(0.0), Scheme()).scale.item() == 1.0


@pytest.mark.parametrize("low, high", [(float("nan"), 1.0), (-1.0, float("inf")), (2.0, 1.0)])
def test_bad_ranges_are_refused(low: float, high: float) -> None:
    with pytest.raises(CalibrationError):
        qparams_of_range(torch.tensor(low), torch.tensor(high), Scheme())


def test_a_scale_of_zero_is_refused() -> None:
    with pytest.raises(CalibrationError, match="positive"):
        QParams(torch.tensor(0.0), torch.tensor(0), Scheme())


def test_blocks_and_back() -> None:
    x = torch.randn(4, 6, 2)
    for granularity in (PerChannel(1), PerGroup(1, 3), PerGroup(0, 2)):
        means = blocks(x, granularity).mean(1)
        arranged = from_blocks(means, tuple(x.shape), granularity)
        if isinstance(granularity, PerChannel):
            torch.testing.assert_close(arranged, x.mean((0, 2)))
        elif granularity.axis == 1:
            torch.testing.assert_close(arranged, x.reshape(4, 2, 3, 2).mean(2))
        else:
            torch.testing.assert_close(arranged, x.reshape(2, 2, 6, 2).mean(1))


def test_groups_that_do_not_divide_are_an_error() -> None:
    with pytest.raises(SettingError, match="divisor of 5"):
        blocks(torch.zeros(2, 5), PerGroup(1, 2))


def test_a_tensor_whose_minimum_is_the_lowest_level_of_a_log_grid() -> None:
    p = qparams_of_range(torch.tensor(-8.0), torch.tensor(8.0), Scheme(bits=4, grid=PowersOfTwo()))
    assert p.quantize(torch.tensor([8.0, -8.0, 0.1])).tolist() == [64, -64, 1]
