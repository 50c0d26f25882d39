"""Centroids against Lloyd's algorithm written out, and against an optimum that is known."""

import numpy as np
import pytest
import torch

from isobit.core.errors import CalibrationError, SettingError
from isobit.core.grid import Codebook
from isobit.core.qparams import QParams
from isobit.core.scheme import Scheme
from isobit.observers.centroids import Centroids


def found(batches: list[torch.Tensor], *, bits: int, iterations: int = 300) -> QParams:
    observer = Centroids(iterations=iterations).build(Scheme(bits=bits, grid=Codebook()))
    for batch in batches:
        observer.see(batch)
    return observer.qparams()


def written_out(x: np.ndarray, count: int, iterations: int) -> np.ndarray:
    centroids = np.linspace(x.min(), x.max(), count)
    for _ in range(iterations):
        nearest = np.abs(x[:, None] - centroids).argmin(1)
        centroids = np.array([x[nearest == k].mean() if (nearest == k).any() else centroids[k] for k in range(count)])
    return centroids


@pytest.mark.parametrize("iterations", [0, 1, 7, 60])
@pytest.mark.parametrize("bits", [1, 2, 4])
def test_equals_the_algorithm_written_out(bits: int, iterations: int) -> None:
    torch.manual_seed(bits)
    x = torch.cat([torch.randn(700), torch.randn(100) * 0.1 + 6])
    q = found([x[:300].reshape(3, 100), x[300:]], bits=bits, iterations=iterations)
    assert q.codebook is not None
    np.testing.assert_allclose(q.codebook.numpy(), written_out(x.double().numpy(), 2**bits, iterations), rtol=1e-6)
    assert q.scale.item() == 1.0


def test_separate_heaps_are_found() -> None:
    centres = torch.tensor([-3.0, -1.0, 2.0, 5.0])
    x = centres[:, None] + torch.linspace(-0.2, 0.2, 101)
    q = found([x], bits=2)
    assert q.codebook is not None
    torch.testing.assert_close(q.codebook, centres)


@pytest.mark.parametrize("value", [0.0, 0.3, -5.0])
def test_one_value_alone_is_its_own_centroid(value: float) -> None:
    x = torch.full((7,), value)
    torch.testing.assert_close(found([x], bits=3).fake_quantize(x), x)


def test_having_seen_nothing_is_an_error() -> None:
    with pytest.raises(CalibrationError, match="saw no data"):
        found([], bits=2)
    with pytest.raises(CalibrationError, match="NaN"):
        found([torch.tensor([float("nan")])], bits=2)


def test_a_negative_number_of_iterations_is_refused() -> None:
    with pytest.raises(SettingError, match="at least 0"):
        Centroids(iterations=-1)
