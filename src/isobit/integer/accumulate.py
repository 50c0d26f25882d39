"""Exact sums of products with fast kernels: float32 where no partial sum can reach 2^24, else in two parts."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from isobit.core.errors import UnsupportedError
from isobit.integer.requantize import wrap32

_EXACT = 1 << 24
_EXACT_DOUBLE = 1 << 53
Product = Callable[[Tensor, Tensor], Tensor]


def accumulate(
    x: Tensor,
    w: np.ndarray,
    bias: Tensor | None,
    *,
    largest: int,
    reduce: tuple[int, ...],
    product: Product,
    bits: int = 32,
) -> Tensor:
    """product(x, w) + bias, exactly, as registers of `bits` (32 or 64) hold it.

    `x` holds integers of magnitude `largest` at most; `w` integers; `reduce` are the axes of `w` that `product`
    sums over; `product` is bilinear (a convolution or a matrix product). Every partial sum, in any order, is
    bounded by largest · sum |w|, so float32 kernels are exact while that stays below 2^24. Above, w = 16 a + b
    with 0 <= b < 16 gives two such products; above that, float64 is exact. The result is float32, or float64.
    """
    size = np.abs(w).sum(axis=reduce)
    extra = 0 if bias is None else int(bias.abs().max())
    bound = int(size.max()) * largest
    if bound + extra < _EXACT:
        acc = _exact(product, x, w)
        return acc if bias is None else acc.add_(bias.to(acc.dtype))
    high, low = w >> 4, w & 15
    parts = max(int(np.abs(high).sum(axis=reduce).max()), int(low.sum(axis=reduce).max())) * largest
    if bound < _EXACT:
        acc = _exact(product, x, w).double()
    elif parts < _EXACT:
        acc = _exact(product, x, high).double().mul_(16).add_(_exact(product, x, low))
    else:
        acc = product(x.double(), torch.from_numpy(np.ascontiguousarray(w)).double())
    if bias is not None:
        acc.add_(bias.double())
    return _in_register(acc, bound + extra, bits)


def _in_register(acc: Tensor, bound: int, bits: int) -> Tensor:
    if bound >= _EXACT_DOUBLE:
        raise UnsupportedError("a layer's sums of products can reach 2^53, which float64 does not hold exactly")
    return acc if bound < 1 << 31 or bits > 32 else wrap32(acc.to(torch.int64))


def accumulate_pair(a: Tensor, b: Tensor, *, largest: tuple[int, int], bits: int = 32) -> Tensor:
    """a @ b of two activations, exactly; the bounds on both magnitudes decide between float32 and float64."""
    bound = a.shape[-1] * largest[0] * largest[1]
    if bound < _EXACT:
        return a @ b
    return _in_register(a.double() @ b.double(), bound, bits)


@contextmanager
def ieee_float32() -> Iterator[None]:
    """Keep TF32 and bfloat16 out of float32 products: a user's global setting could let them in."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def _exact(product: Product, x: Tensor, w: np.ndarray) -> Tensor:
    return product(x, torch.from_numpy(w.astype(np.float32)))
