"""What a range costs: the error that its real parameters make on weighted points."""

from dataclasses import replace

import torch
from torch import Tensor

from isobit.core.fake_quantize import fake_quantize
from isobit.core.granularity import PerTensor
from isobit.core.qparams import qparams_of_range
from isobit.core.rounding import HalfEven, Stochastic
from isobit.core.scheme import Scheme

WORK = 1 << 17
"""Values quantized at a time."""


def quantization_error(
    points: Tensor, weights: Tensor, low: Tensor, high: Tensor, scheme: Scheme, *, power: float = 2.0
) -> Tensor:
    """Σ weight · |x - x̂|^power / Σ weight for each range, x̂ quantized with the parameters that the range gives.

    So power-of-two scales, rounded zero points and logarithmic grids count as what they are. Stochastic rounding
    is judged as rounding to nearest. Shapes: points, weights (rows, n); low, high (rows, ranges), and the result,
    float32.
    """
    rounding = HalfEven() if isinstance(scheme.rounding, Stochastic) else scheme.rounding
    plain = replace(scheme, granularity=PerTensor(), rounding=rounding)  # a scale that broadcasts as it is
    share = (weights / weights.sum(1, keepdim=True)).float()[:, :, None]
    x = points[:, None, :]
    q = qparams_of_range(low[:, :, None], high[:, :, None], plain)
    at_once = max(1, WORK // points.numel())
    errors = []
    for first in range(0, low.shape[1], at_once):
        some = slice(first, first + at_once)
        error = fake_quantize(x, q.scale[:, some], q.zero_point[:, some], plain).sub_(x)
        error = error.square_() if power == 2 else error.abs_().pow_(power)
        errors.append(torch.matmul(error, share).squeeze(2))
    return torch.cat(errors, dim=1)


def best_range(errors: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The range of least error in each row, the first of equals. Shapes: (rows, ranges) to (rows,)."""
    best = errors.argmin(dim=1, keepdim=True)
    return low.gather(1, best).squeeze(1), high.gather(1, best).squeeze(1)
