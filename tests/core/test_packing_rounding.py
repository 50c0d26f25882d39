"""Packing against numpy's bit operations and onnx; rounding against closed forms."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from isobit.core.errors import SettingError
from isobit.core.packing import pack, unpack
from isobit.core.rounding import Floor, HalfAway, HalfEven, round_to_integer, uniform_noise


@given(st.sampled_from([1, 2, 4, 8]), st.booleans(), st.integers(0, 40), st.integers(0, 2**31))
def test_unpack_inverts_pack(bits: int, signed: bool, count: int, seed: int) -> None:
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    q = torch.from_numpy(np.random.default_rng(seed).integers(low, high + 1, count))
    packed = pack(q, bits=bits, signed=signed)
    assert packed.numel() == -(-count * bits // 8)
    assert torch.equal(unpack(packed, bits=bits, signed=signed, shape=(count,)).long(), q)


def test_four_bits_lie_as_onnx_lays_them() -> None:
    import ml_dtypes
    from onnx import numpy_helper

    q = np.array([1, -2, 7, -8, 3], dtype=np.int8)
    raw = numpy_helper.from_array(q.astype(ml_dtypes.int4)).raw_data
    assert bytes(pack(torch.from_numpy(q), bits=4, signed=True).numpy()) == raw


def test_values_that_do_not_fit_are_refused() -> None:
    with pytest.raises(SettingError, match="do not fit"):
        pack(torch.tensor([8]), bits=4, signed=True)
    with pytest.raises(SettingError, match="1, 2, 4 and 8"):
        pack(torch.tensor([1]), bits=3, signed=True)


def test_half_away_is_right_just_below_a_half() -> None:
    below = float(np.nextafter(np.float32(0.5), np.float32(0)))
    v = torch.tensor([below, -below, 0.5, -0.5, 1.5, 8388609.0])
    assert round_to_integer(v, HalfAway()).tolist() == [0.0, 0.0, 1.0, -1.0, 2.0, 8388609.0]
    assert round_to_integer(v, HalfEven()).tolist() == np.rint(v.numpy()).tolist()
    assert round_to_integer(v, Floor()).tolist() == np.floor(v.numpy()).tolist()


def test_noise_is_uniform_and_a_function_of_seed_and_step() -> None:
    from scipy import stats

    x = torch.zeros(100_000)
    a = uniform_noise(x, seed=1, step=0)
    assert stats.kstest(a.numpy(), "uniform").pvalue > 0.01
    assert torch.equal(a, uniform_noise(x, seed=1, step=0))
    for other in (uniform_noise(x, seed=1, step=1), uniform_noise(x, seed=2, step=0)):
        assert abs(np.corrcoef(a.numpy(), other.numpy())[0, 1]) < 0.02
