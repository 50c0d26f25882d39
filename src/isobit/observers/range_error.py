"""What a range costs: the error that its real parameters make on weighted points."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from isobit.core.fake_quantize import fake_quantize
from isobit.core.granularity import PerTensor
from isobit.core.grid import Codebook
from isobit.core.qparams import SMALLEST_SCALE, qparams_of_range
from isobit.core.rounding import HalfEven, Stochastic
from isobit.core.scheme import Scheme

EQUAL = 1e-5
"""Relative difference of two errors that counts as none."""

WORK = 1 << 17
"""Values quantized at a time."""


def has_free_ends(scheme: Scheme) -> bool:
    """Whether a range may shrink at one end alone: where there is a zero point, or a codebook."""
    return not scheme.symmetric or isinstance(scheme.grid, Codebook)


def quantization_error(
    points: Tensor, weights: Tensor, low: Tensor, high: Tensor, scheme: Scheme, *, power: float = 2.0
) -> Tensor:
    """Σ weight · |x - x̂|^power / Σ weight for each range, x̂ quantized with the parameters that the range gives.

    So power-of-two scales, rounded zero points and logarithmic grids count as what they are, and a codebook as the even
    one that it starts with, each row by itself. Stochastic rounding is judged as rounding to nearest.
    Shapes: points, weights (rows, n); low, high (rows, ranges), and the result, float32.
    """
    share = (weights / weights.sum(1, keepdim=True)).float()[:, :, None]
    x = points[:, None, :]
    quantize = _quantizer(low[:, :, None], high[:, :, None], scheme)
    at_once = max(1, WORK // points.numel())
    errors = []
    for first in range(0, low.shape[1], at_once):
        error = quantize(x, slice(first, first + at_once)).sub_(x)
        error = error.square_() if power == 2 else error.abs_().pow_(power)
        errors.append(torch.matmul(error, share).squeeze(2))
    return torch.cat(errors, dim=1)


def _quantizer(low: Tensor, high: Tensor, scheme: Scheme) -> Callable[[Tensor, slice], Tensor]:
    """What quantizes (rows, 1, n) with some of the ranges, each (rows, ranges, 1), to (rows, some, n)."""
    if isinstance(scheme.grid, Codebook):
        first = (low.clamp(max=0) if scheme.signed else torch.zeros_like(low)).float()
        steps = (1 << scheme.bits) - 1
        step = (high.clamp(min=0).float() - first).clamp(min=SMALLEST_SCALE) / steps
        return lambda x, some: (
            ((x - first[:, some]) / step[:, some]).round_().clamp_(0, steps).mul_(step[:, some]).add_(first[:, some])
        )
    rounding = HalfEven() if isinstance(scheme.rounding, Stochastic) else scheme.rounding
    plain = replace(scheme, granularity=PerTensor(), rounding=rounding)  # a scale that broadcasts as it is
    q = qparams_of_range(low, high, plain)
    return lambda x, some: fake_quantize(x, q.scale[:, some], q.zero_point[:, some], plain)


def best_range(errors: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The range of least error in each row, the first of equals. Shapes: (rows, ranges) to (rows,).

    Errors are equal within what sums of float32 in another order differ by, so that processors choose alike.
    """
    equal = errors <= errors.amin(dim=1, keepdim=True) * (1 + EQUAL)
    best = equal.to(torch.uint8).argmax(dim=1, keepdim=True)
    return low.gather(1, best).squeeze(1), high.gather(1, best).squeeze(1)
