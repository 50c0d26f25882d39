import numpy as np
import pytest
import torch
import torch.nn.functional as F

from isobit.integer.accumulate import accumulate, accumulate_pair, ieee_float32


def exact(x: np.ndarray, w: np.ndarray, bias: np.ndarray) -> np.ndarray:
    return (x.astype(np.int64) @ w.astype(np.int64) + bias).astype(np.int64)


@pytest.mark.parametrize("precision", ["highest", "medium"])
@pytest.mark.parametrize(
    ("products", "size", "kind"),
    [
        (100, 127, torch.float32),
        (2000, 127, torch.float64),
        (60_000, 127, torch.float64),
        (100_000, 20_000, torch.int64),
    ],
)
def test_sums_are_exact_at_any_length(products: int, size: int, kind: torch.dtype, precision: str) -> None:
    """Worst-case weights: float32, two parts, float64, and a register that wraps around."""
    rng = np.random.default_rng(0)
    x = rng.integers(200, 256, (3, products))
    w = rng.integers(size - 3, size + 1, (products, 5)) * rng.choice([1, -1], 5)
    bias = rng.integers(-100_000, 100_000, 5)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        with ieee_float32():
            found = accumulate(
                torch.from_numpy(x).float(), w, torch.from_numpy(bias), largest=255, reduce=(0,), product=torch.matmul
            )
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)
    assert found.dtype is kind
    np.testing.assert_array_equal(found.numpy().astype(np.int64), exact(x, w, bias).astype(np.int32))


@pytest.mark.parametrize("precision", ["highest", "medium"])
def test_convolutions_are_exact(precision: str) -> None:
    rng = np.random.default_rng(1)
    x = torch.from_numpy(rng.integers(0, 256, (2, 64, 12, 12))).float()
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        for channels, group in ((64, 1), (64, 64), (256, 4)):
            w = rng.integers(-128, 128, (channels, 64 // group, 3, 3))
            with ieee_float32():
                found = accumulate(
                    x, w, None, largest=255, reduce=(1, 2, 3), product=lambda a, b, g=group: F.conv2d(a, b, groups=g)
                )
            expected = F.conv2d(x.double(), torch.from_numpy(w).double(), groups=group)
            assert torch.equal(found.double(), expected)
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("length", [8, 1000, 70_000])
def test_products_of_two_activations(length: int) -> None:
    rng = np.random.default_rng(2)
    a, b = rng.integers(0, 256, (2, 3, length)), rng.integers(0, 256, (2, length, 4))
    found = accumulate_pair(torch.from_numpy(a).float(), torch.from_numpy(b).float(), largest=(255, 255))
    np.testing.assert_array_equal(found.numpy().astype(np.int64), (a @ b).astype(np.int32))
