"""Short multipliers: against numbers that Qualcomm's HTP simulator gave (onnxruntime-qnn 2.7.0), each a measurement."""

import numpy as np
import pytest
import torch

from isobit.core.arithmetic import HEXAGON
from isobit.integer import ops
from isobit.integer.requantize import multiplier, requantize
from isobit.integer.short import halving, halving_product
from isobit.integer.values import Format, Quantized


def u8(scale: float, zero_point: int = 0) -> Format:
    return Format(np.float32(scale), zero_point, 0, 255)


def quantized(values: list[int], format: Format) -> Quantized:
    return Quantized(torch.tensor(values, dtype=torch.float32), format)


@pytest.mark.parametrize(
    ("scale", "first"),
    [
        (118.0, [64, 184, 296, 416, 536, 656, 768, 888, 1008, 1128, 1240, 1360, 1480, 1600]),
        (117.3, [64, 184, 296, 416, 536, 648, 768, 888, 1000, 1120, 1240, 1352, 1472, 1592]),
        (100.0, [56, 152, 256, 352, 456, 552, 656, 752, 856, 952, 1056, 1152, 1256, 1352]),
        (130.7, [80, 208, 336, 464, 592, 720, 864, 992, 1120, 1248, 1376, 1504, 1648, 1776]),
        (16.0, [8, 24, 40, 56, 72, 88, 104, 120, 136, 152, 168, 184, 200, 216]),
    ],
)
def test_the_first_accumulator_of_each_level_of_a_convolution(scale: float, first: list[int]) -> None:
    """Scales of 1 in front: the accumulator itself, over `scale`."""
    output = u8(scale)
    factor = torch.from_numpy(multiplier(HEXAGON.requantize, np.float32(1), np.ones(1, np.float32), output.scale))
    q = requantize(torch.arange(first[-1] + 1, dtype=torch.float64), factor, HEXAGON.requantize, output)
    assert [int(torch.nonzero(q == level)[0]) for level in range(1, 15)] == first


def test_the_factor_of_a_channel_is_that_of_the_largest_times_a_share() -> None:
    """The bits of z / m decide: s_x · s_w / s_y in another order gives other integers."""
    r = np.random.default_rng(0)
    x, w, y = np.float32(0.0123), r.uniform(1e-3, 1e-2, 500).astype(np.float32), np.float32(0.3)
    found = multiplier(HEXAGON.requantize, x, w, y)
    np.testing.assert_array_equal(found, np.float32(x * w.max()) / y * (w / w.max()))
    assert (found != (x * w) / y).any()


@pytest.mark.parametrize(
    ("scales", "zero_points", "measured"),
    [
        (
            (0.0123, 0.0217, 0.031),
            (100, 57, 99),
            [(162, 24, 101), (71, 57, 88), (255, 67, 168), (70, 19, 61), (133, 29, 93), (100, 192, 194)],
        ),
        (
            (0.0123, 0.0217, 0.013),
            (128, 128, 128),
            [(74, 99, 29), (229, 107, 188), (107, 142, 132), (88, 133, 99), (217, 112, 185), (253, 214, 255)],
        ),
        (
            (0.004, 0.007, 0.05),
            (30, 200, 10),
            [(45, 245, 17), (77, 141, 5), (36, 193, 9), (65, 205, 13), (199, 157, 17), (248, 79, 10), (101, 17, 0)],
        ),
    ],
)
def test_add(scales: tuple[float, ...], zero_points: tuple[int, ...], measured: list[tuple[int, int, int]]) -> None:
    a, b, y = (u8(s, z) for s, z in zip(scales, zero_points, strict=True))
    left, right, result = zip(*measured, strict=True)
    found = ops.add(quantized(list(left), a), quantized(list(right), b), y, HEXAGON)
    assert found.tolist() == list(result)


@pytest.mark.parametrize(
    ("scales", "zero_points", "count", "measured"),
    [
        ((0.0123, 0.0087), (128, 120), 64, [(4050, 28), (6585, 84), (11927, 203), (773, 0), (9240, 143)]),
        ((0.02, 0.0077), (0, 0), 15, [(719, 124), (1412, 244), (334, 58), (3742, 255)]),
        ((1.0, 0.8), (0, 0), 64, [(2176, 43), (6784, 133), (11392, 223), (6848, 134), (6561, 128), (16120, 255)]),
    ],
)
def test_global_average(
    scales: tuple[float, float], zero_points: tuple[int, int], count: int, measured: list[tuple[int, int]]
) -> None:
    """Planes with these sums."""
    x, y = (u8(s, z) for s, z in zip(scales, zero_points, strict=True))
    for total, expected in measured:
        plane = [total // count + (i < total % count) for i in range(count)]
        given = Quantized(torch.tensor(plane, dtype=torch.float32).reshape(1, 1, 1, count), x)
        assert ops.global_average(given, y, HEXAGON).item() == expected


def test_which_convolutions_take_the_other_kernel() -> None:
    assert halving(32, 32, [2, 2], [1, 1])
    assert not halving(32, 32, [1, 1], [2, 2]) and not halving(32, 32, [3, 3], [1, 1])
    assert not halving(1, 32, [2, 2], [1, 1]) and not halving(1, 1, [2, 2], [1, 1])
    assert halving(1, 6, [2, 1], [2, 1]) and not halving(1, 6, [2, 1], [1, 2])


def test_the_other_kernel_keeps_15_bits_of_the_factor() -> None:
    acc = torch.arange(-3000, 30000, dtype=torch.float64)
    found = halving_product(acc, torch.tensor([1 / 117.3]), u8(1.0, 9))
    offset = int(np.float32(9) / np.float32(1 / 117.3) + 0.5)
    m = round(1 / 117.3 * 2**21)  # between 2^14 and 2^15
    assert found.tolist() == [min(max(((int(a) + offset) * m * 2 + 2**21) >> 22, 0), 255) for a in acc.tolist()]
