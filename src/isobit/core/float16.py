"""Casts to floats of 16 bits: no scale, nothing to calibrate."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from isobit.core.grid import LARGEST_FLOAT16, Float16

SMALLEST_NORMAL = 2.0**-14
"""The smallest float16 with a whole mantissa; below it are the subnormals."""


def cast(x: Tensor, grid: Float16) -> Tensor:
    """The nearest float16 of each value, ties to even, in the dtype of x; ±65504 beyond; NaN stays.

    >>> cast(torch.tensor([1 + 2.0**-11, 1e6, 1e-5]), Float16(subnormals=False)).tolist()
    [1.0, 65504.0, 0.0]
    """
    y = x.clamp(-LARGEST_FLOAT16, LARGEST_FLOAT16).to(torch.float16).to(x.dtype)
    return y if grid.subnormals else torch.where(y.abs() < SMALLEST_NORMAL, torch.zeros_like(y), y)


class Cast(torch.autograd.Function):
    """`cast` with a straight-through gradient: 1 where |x| <= 65504, else 0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, grid: Float16) -> Tensor:
        """Shapes: any."""
        ctx.save_for_backward(x)
        return cast(x, grid)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """See the class."""
        (x,) = ctx.saved_tensors
        return grad * (x.abs() <= LARGEST_FLOAT16), None
