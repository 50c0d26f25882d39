"""The geometric grid against the formulas of NNIE's description, in Python's floats."""

import math

import numpy as np
import pytest
import torch

from isobit.core.errors import SettingError
from isobit.core.fake_quantize import fake_quantize
from isobit.core.geometric import borders, geometric_scale, snap, values
from isobit.core.granularity import PerChannel
from isobit.core.grid import Geometric
from isobit.core.qparams import qparams_of_range
from isobit.core.scheme import PowerOfTwo, Scheme

GRID, SCHEME = Geometric(), Scheme(grid=Geometric())


def documented(x: float, c: float) -> float:
    """MQBench's page on NNIE: z = round(16 log2 c) - 127, and the four cases for x."""
    z = round(16 * math.log2(c)) - 127
    if x < -(2 ** ((z + 1) / 16 - 1)):
        return -(2 ** ((min(max(round(16 * math.log2(-x)) - z, 1), 127) + z) / 16))
    if x < 2 ** (z / 16 - 1):
        return 0.0
    return 2 ** ((min(max(round(16 * math.log2(x)) - z, 0), 127) + z) / 16)


@pytest.mark.parametrize("c", [0.013, 1.0, 6.0, 70.3])
def test_it_is_what_is_documented(c: float) -> None:
    generator = np.random.default_rng(0)
    x = np.concatenate([generator.standard_normal(2000) * c / 3, generator.standard_normal(500) * c / 300, [0, c, -c]])
    x = x.astype(np.float32)
    qparams = qparams_of_range(torch.tensor(-c), torch.tensor(c / 2), SCHEME)
    found = qparams.fake_quantize(torch.from_numpy(x)).numpy()
    expected = np.array([documented(float(v), c) for v in x], np.float32)
    np.testing.assert_allclose(found, expected, rtol=1e-7)
    assert len(np.unique(found)) > 100


def test_values_and_codes() -> None:
    """256 values: a sign and 7 bits, of which one code, minus nothing, is 0."""
    scale = geometric_scale(torch.tensor(1.0), GRID, 8).float()
    table = values(scale, GRID, 8)
    assert table.numel() == 256 and (table[1:] > table[:-1]).all()
    assert (int((table < 0).sum()), int((table == 0).sum()), int((table > 0).sum())) == (127, 1, 128)
    assert float(table[-1]) == 1.0 and float(table[0]) == -1.0
    np.testing.assert_allclose(table[128:].numpy(), 2.0 ** (np.arange(-127, 1) / 16), rtol=1e-7)
    qparams = qparams_of_range(torch.tensor(-1.0), torch.tensor(1.0), SCHEME)
    assert torch.equal(qparams.quantize(table), torch.arange(256, dtype=torch.int32))
    assert torch.equal(qparams.dequantize(qparams.quantize(table)), table)
    assert [float(end) for end in qparams.range()] == [-1.0, 1.0]


def test_a_border_belongs_to_the_value_above_and_what_is_below_it_does_not() -> None:
    scale = geometric_scale(torch.tensor(3.0), GRID, 8).float()
    edge, table = borders(scale, GRID, 8), values(scale, GRID, 8)
    assert edge.numel() == 255 and (edge[1:] > edge[:-1]).all()
    assert torch.equal(snap(edge, scale, GRID, 8), table[1:])
    below = torch.nextafter(edge, torch.full_like(edge, -torch.inf))
    assert torch.equal(snap(below, scale, GRID, 8), table[:-1])


def test_gradient_nan_and_what_is_beyond() -> None:
    scale = geometric_scale(torch.tensor(1.0), GRID, 8).float()
    x = torch.tensor([0.3, -2.0, 1.0, 5.0], requires_grad=True)
    y = fake_quantize(x, scale, torch.zeros(()), SCHEME)
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [1.0, 0.0, 1.0, 0.0]
    assert y.tolist()[1::2] == [-1.0, 1.0]
    assert fake_quantize(torch.tensor([float("nan")]), scale, torch.zeros(()), SCHEME).isnan().all()


def test_nothing_but_zero() -> None:
    qparams = qparams_of_range(torch.tensor(0.0), torch.tensor(0.0), SCHEME)
    assert qparams.fake_quantize(torch.zeros(3)).tolist() == [0.0, 0.0, 0.0]
    assert str(SCHEME) == "s8 symmetric per-tensor logarithmic, 16 steps an octave"


@pytest.mark.parametrize(
    "other",
    [{"bits": 16}, {"signed": False}, {"granularity": PerChannel(0)}, {"scale": PowerOfTwo()}, {"symmetric": False},
     {"narrow": True}],
)  # fmt: skip
def test_what_it_does_not_have(other: dict[str, object]) -> None:
    with pytest.raises(SettingError):
        Scheme(**{"grid": GRID, **other})
