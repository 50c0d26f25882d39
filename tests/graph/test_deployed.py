"""Stored forms: the same values under other integers."""

from itertools import product

import pytest
import torch

from isobit.core.errors import UnsupportedError
from isobit.core.granularity import Granularity, PerChannel, PerGroup, PerTensor
from isobit.core.grid import PowersOfTwo
from isobit.core.qparams import qparams_of_range
from isobit.core.scheme import Scheme
from isobit.graph.deployed import IntegerWeight, integer_bias
from isobit.graph.deployed_activations import ActivationQuantizer, store_activation

SIGNS = {"signed": (True, True), "signed asymmetric": (True, False), "unsigned": (False, True), "u": (False, False)}


@pytest.mark.parametrize(("sign", "bits"), list(product(SIGNS, [2, 3, 4, 7, 8])))
@pytest.mark.parametrize("non_negative", [False, True])
@pytest.mark.parametrize("signed_bytes", [False, True])
def test_the_stored_grid_holds_the_same_values(sign: str, bits: int, non_negative: bool, signed_bytes: bool) -> None:
    signed, symmetric = SIGNS[sign]
    low = 0.0 if non_negative else -1.3
    grid = qparams_of_range(torch.tensor(low), torch.tensor(2.1), Scheme(bits=bits, signed=signed, symmetric=symmetric))
    x = torch.linspace(low, 3, 5001)
    stored = store_activation(grid, non_negative=non_negative, name="x", signed_bytes=signed_bytes)
    assert torch.equal(ActivationQuantizer(stored)(x), grid.fake_quantize(x))
    if signed and signed_bytes and not non_negative:
        assert (stored.low, stored.high) == (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        assert (stored.zero_point.dtype, int(stored.zero_point)) == (torch.int8, int(grid.zero_point))
        return
    assert stored.zero_point.dtype == torch.uint8
    assert 0 <= stored.low <= int(stored.zero_point) <= stored.high <= 255
    if non_negative:
        assert (stored.low, int(stored.zero_point)) == (0, 0)
    elif signed:
        assert stored.low == 0
        assert int(stored.zero_point) == int(grid.zero_point) + 2 ** (bits - 1)


def test_narrow_grids_are_cut() -> None:
    grid = qparams_of_range(torch.tensor(-1.0), torch.tensor(1.0), Scheme(narrow=True))
    stored = store_activation(grid, non_negative=False, name="x")
    assert (stored.low, int(stored.zero_point), stored.high) == (1, 128, 255)


@pytest.mark.parametrize(
    ("scheme", "says"),
    [
        (Scheme(bits=9), "x has 9 bits"),
        (Scheme(granularity=PerChannel(0)), "x: engines take one scale per activation tensor"),
        (
            Scheme(bits=5, grid=PowersOfTwo()),
            "x: activations of s5 symmetric per-tensor logarithmic do not fit",
        ),
    ],
)
def test_grids_without_a_stored_form(scheme: Scheme, says: str) -> None:
    end = torch.ones(3) if isinstance(scheme.granularity, PerChannel) else torch.tensor(1.0)
    with pytest.raises(UnsupportedError, match=says):
        store_activation(qparams_of_range(-end, end, scheme), non_negative=False, name="x")


@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel(0), PerGroup(1, 4)], ids=str)
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_an_integer_weight_is_the_quantized_weight(granularity: Granularity, signed: bool, bits: int) -> None:
    weight = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    rows = {PerTensor: weight.reshape(1, -1), PerChannel: weight, PerGroup: weight.reshape(6, 2, 4)}[type(granularity)]
    low, high = rows.amin(-1), rows.amax(-1)
    if isinstance(granularity, PerTensor):
        low, high = low[0], high[0]
    grid = qparams_of_range(low, high, Scheme(bits=bits, signed=signed, symmetric=False, granularity=granularity))
    bias = torch.randn(6)
    stored = IntegerWeight(weight, grid, bias, torch.tensor(0.1), name="w")
    assert stored.q.dtype == (torch.int8 if signed else torch.uint8)
    assert torch.equal(stored.weight(), grid.fake_quantize(weight))
    if stored.offset is not None:
        assert not bool(stored.zero_point.any())
        assert torch.equal(stored.q + stored.offset, grid.quantize(weight))
    found = stored.bias()
    assert found is not None
    if isinstance(granularity, PerGroup):
        assert torch.equal(found, bias)  # no single accumulator scale: it stays in float
    else:
        assert bool(((found - bias).abs() <= 0.0501 * grid.scale).all())
        assert stored.bias_q.dtype == torch.int32


def test_a_bias_saturates_at_32_bits() -> None:
    assert integer_bias(torch.tensor([1e9, -1e9, 2.5]), torch.tensor(1e-3)).tolist() == [2**31 - 1, -(2**31 - 1), 2500]
    assert integer_bias(torch.tensor([0.5, 1.5]), torch.tensor(1.0)).tolist() == [0, 2]  # ties to even
