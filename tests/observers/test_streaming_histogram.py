"""The histogram against numpy's counts, through growth and at the ends of float32."""

import numpy as np
import pytest
import torch
from torch import Tensor

from isobit.core.errors import SettingError
from isobit.core.granularity import PerChannel, PerTensor
from isobit.core.scheme import Scheme
from isobit.observers.streaming_histogram import HistogramPart, StreamingHistogram


def histogram_of(*batches: Tensor, scheme: Scheme | None = None, bins: int = 64) -> HistogramPart:
    histogram = StreamingHistogram(scheme or Scheme(), bins=bins)
    for batch in batches:
        histogram.see(batch)
    (part,) = histogram.parts()
    return part


def random_values(seed: int, count: int = 1000) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    "powers", [(0, 1, 2), (2, 1, 0), (-30, 0, 30), (30, -30, 0), (120, -120, 3), (-140, -135, -130)]
)
def test_counts_equal_numpy_after_any_growth(powers: tuple[int, ...]) -> None:
    batches = [(random_values(i).double() * 2.0**p).float() for i, p in enumerate(powers)]
    part = histogram_of(*batches)
    x = torch.cat(batches).double().numpy()
    exponent = max(np.frexp(np.abs(x).max())[1] - 6, -120)
    number = np.trunc(np.ldexp(x, -exponent)).astype(int)
    assert part.right.shape == part.left.shape == (1, 64)
    np.testing.assert_array_equal(part.right[0], np.bincount(number[number >= 0], minlength=64))
    np.testing.assert_array_equal(part.left[0], np.bincount(-number[number < 0], minlength=64))
    assert part.low.item() == np.ldexp(x.min(), -exponent) and part.high.item() == np.ldexp(x.max(), -exponent)


def test_values_on_an_edge_count_outwards_on_both_sides() -> None:
    part = histogram_of(torch.tensor([2.0, -2.0, 63.0, -63.0, 0.0, -0.0, 0.99, -0.99]).repeat(100))
    assert part.right.nonzero().tolist() == [[0, 0], [0, 2], [0, 63]]
    assert part.left.nonzero().tolist() == [[0, 2], [0, 63]]
    assert part.right[0, 0] == 400


def test_each_row_has_a_width_of_its_own() -> None:
    x = random_values(0, 3000).reshape(3, 1000) * torch.tensor([1e-20, 1.0, 1e20])[:, None]
    together = histogram_of(x, scheme=Scheme(granularity=PerChannel(0)))
    for row in range(3):
        alone = histogram_of(x[row])
        assert torch.equal(together.right[row], alone.right[0]) and torch.equal(together.left[row], alone.left[0])


def test_few_values_are_kept_exactly_and_many_stand_in_the_middle_of_their_bins() -> None:
    few = random_values(0, 128)
    values, weights = histogram_of(few).points()
    width = 2.0 ** (int(torch.frexp(few.abs().max()).exponent) - 6)
    assert torch.equal(values[0] * width, few.sort().values) and bool((weights == 1).all())
    many = random_values(0, 100_000)
    values, weights = histogram_of(many).points()
    width = 2.0 ** (int(torch.frexp(many.abs().max()).exponent) - 6)
    expected = many.double().sort().values
    mine = (values[0].double() * width).repeat_interleave(weights[0].long())
    assert mine.shape == expected.shape and (mine - expected).abs().max() < width


def test_more_values_than_a_chunk() -> None:
    x = random_values(0, 400_000)
    part = histogram_of(x)
    assert int(part.right.sum() + part.left.sum()) == 400_000
    pieces = histogram_of(*x.split(1234))
    assert torch.equal(part.right, pieces.right) and torch.equal(part.left, pieces.left)


def test_rows_come_in_parts() -> None:
    histogram = StreamingHistogram(Scheme(granularity=PerChannel(0)), bins=512)
    histogram.see(random_values(0, 3000).reshape(300, 10))
    parts = list(histogram.parts())
    assert len(parts) == 3 and sum(len(p.low) for p in parts) == 300
    assert all(int(p.right.sum() + p.left.sum()) == 10 * len(p.low) for p in parts)


@pytest.mark.parametrize("bins", [0, 63, 100, 1 << 15])
def test_refuses_other_numbers_of_bins(bins: int) -> None:
    with pytest.raises(SettingError, match="power of two"):
        StreamingHistogram(Scheme(granularity=PerTensor()), bins=bins)
