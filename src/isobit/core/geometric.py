"""The geometric grid: its values, where one ends and the next begins, and rounding to it.

Values are rounded by their logarithm: the border between s · 2^(k / n) and s · 2^((k + 1) / n) is
s · 2^((k + 1/2) / n); that between 0 and the smallest value of either sign is its half. (MQBench's pages on NNIE,
https://mqbench.readthedocs.io/en/latest/user_guide/hardware/nnie.html.)
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from isobit.core.grid import Geometric


def geometric_scale(largest: Tensor, grid: Geometric, bits: int) -> Tensor:
    """The smallest positive value, float64: 2^(z / n), z = round(n · log2 c) - (2^(bits - 1) - 1), c the largest."""
    z = (largest.double().log2() * grid.steps).round() - ((1 << (bits - 1)) - 1)
    return torch.exp2(z / grid.steps)


def values(scale: Tensor, grid: Geometric, bits: int) -> Tensor:
    """All 2^bits values in ascending order, float32: 2^(bits - 1) - 1 below 0, 0, 2^(bits - 1) above."""
    z = (scale.double().log2() * grid.steps).round()
    positive = torch.exp2((z + _steps(bits, scale)) / grid.steps)
    return torch.cat([-positive[1:].flip(0), torch.zeros_like(positive[:1]), positive]).float()


def borders(scale: Tensor, grid: Geometric, bits: int) -> Tensor:
    """Where the next value begins, 2^bits - 1 of them, ascending: the first float32 that is not below."""
    z = (scale.double().log2() * grid.steps).round()
    middles = torch.exp2((z + _steps(bits, scale)[1:] - 0.5) / grid.steps)
    halves = torch.exp2((z + torch.arange(2, dtype=torch.float64, device=scale.device)) / grid.steps) / 2
    exact = torch.cat([-middles[1:].flip(0), -halves[1:], halves[:1], middles])
    near = exact.float()
    above = torch.nextafter(near, torch.full_like(near, torch.inf))
    return torch.where(near.double() < exact, above, near)


def indices(x: Tensor, scale: Tensor, grid: Geometric, bits: int) -> Tensor:
    """The index of each value's level: how many borders are not above it; int64."""
    return torch.searchsorted(borders(scale, grid, bits), x.float().contiguous(), right=True)


def snap(x: Tensor, scale: Tensor, grid: Geometric, bits: int) -> Tensor:
    """x on the grid, in its dtype; NaN stays.

    >>> one = geometric_scale(torch.tensor(1.0), Geometric(), 8)
    >>> [round(v, 4) for v in snap(torch.tensor([1.1, 0.98, 0.978, -0.5, 0.001]), one, Geometric(), 8).tolist()]
    [1.0, 1.0, 0.9576, -0.5, 0.0]
    """
    if scale.numel() > 1:
        return _snap_each(x, scale, grid, bits)
    scale = scale.reshape(())
    y = values(scale, grid, bits)[indices(x, scale, grid, bits)].to(x.dtype)
    return torch.where(x.isnan(), x, y)


def _snap_each(x: Tensor, scale: Tensor, grid: Geometric, bits: int) -> Tensor:
    """`snap` with scales that broadcast against x: a search tries many ranges at once, of which many are equal."""
    shape = torch.broadcast_shapes(x.shape, scale.shape)  # type: ignore[no-untyped-call]
    x, scales = x.expand(shape), scale.expand(shape)
    y = torch.empty_like(x)
    for one in torch.unique(scale):
        here = scales == one
        y[here] = snap(x[here], one, grid, bits)
    return y


class Snap(torch.autograd.Function):
    """`snap` with a straight-through gradient: 1 between the lowest and the highest value, else 0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, grid: Geometric, bits: int) -> Tensor:
        """Shapes: x any; scale ()."""
        ctx.save_for_backward(x, values(scale, grid, bits)[-1])
        return snap(x, scale, grid, bits)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """See the class."""
        x, largest = ctx.saved_tensors
        return grad * (x.abs() <= largest), None, None, None


def _steps(bits: int, like: Tensor) -> Tensor:
    return torch.arange(1 << (bits - 1), dtype=torch.float64, device=like.device)
