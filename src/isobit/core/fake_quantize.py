"""Fake quantization: integers in the forward pass, a hand-written gradient in the backward pass."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from isobit.core.errors import SettingError
from isobit.core.granularity import expand
from isobit.core.grid import Codebook, MidRise, Uniform
from isobit.core.rounding import Rounding, round_to_integer
from isobit.core.scheme import Scheme


class FakeQuantize(torch.autograd.Function):
    """x̂ = s (q - z) with q = clip(round(x / s) + z, low, high).

    Gradients, with u = x / s and the straight-through estimator for rounding (Jacob et al. 2018; the one to
    the scale is equation 3 of LSQ, arXiv:1902.08153; the one to the zero point equation 5 of LSQ+,
    arXiv:2004.09576):

    - to x: 1 where low < u + z < high, else 0
    - to s: round(u) - u inside; low - z below; high - z above
    - to z: 0 inside; -s outside

    Scale and zero point broadcast against x; their gradients are summed to their own shapes. Plain tensor
    operations alone, so `torch.compile` fuses it and `torch.export` keeps a dynamic batch.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        zero_point: Tensor,
        low: int,
        high: int,
        rounding: Rounding,
        noise: Tensor | None,
    ) -> Tensor:
        """Shapes: x any; scale and zero_point broadcast against it."""
        ctx.save_for_backward(x, scale, zero_point)
        ctx.low, ctx.high, ctx.rounding, ctx.noise = low, high, rounding, noise
        z = zero_point.to(x.dtype)
        q = round_to_integer(x / scale, rounding, noise) + z
        return (q.clamp(low, high) - z) * scale

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """See the class."""
        x, scale, zero_point = ctx.saved_tensors
        z = zero_point.to(x.dtype)
        u = x / scale
        v = u + z
        inside = (v > ctx.low) & (v < ctx.high)
        grad_x = grad_scale = grad_zero_point = None
        if ctx.needs_input_grad[0]:
            grad_x = grad * inside
        if ctx.needs_input_grad[1]:
            clipped = torch.where(v <= ctx.low, ctx.low - z, ctx.high - z)
            slope = torch.where(inside, round_to_integer(u, ctx.rounding, ctx.noise) - u, clipped)
            grad_scale = (grad * slope).sum_to_size(scale.shape)
        if ctx.needs_input_grad[2]:
            grad_zero_point = (grad * torch.where(inside, 0.0, -scale)).sum_to_size(zero_point.shape)
        return grad_x, grad_scale, grad_zero_point, None, None, None, None


class FakeQuantizeToLevels(torch.autograd.Function):
    """x̂ = s · (the level nearest to x / s); gradients as in `FakeQuantize` with z = 0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, levels: Tensor, ties_up: bool) -> Tensor:
        """Shapes: x any; scale broadcasts against it; levels (n,) ascending."""
        ctx.save_for_backward(x, scale, levels)
        ctx.ties_up = ties_up
        return nearest_level(x / scale, levels, ties_up=ties_up) * scale

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """See the class."""
        x, scale, levels = ctx.saved_tensors
        u = x / scale
        inside = (u > levels[0]) & (u < levels[-1])
        grad_x = grad * inside if ctx.needs_input_grad[0] else None
        grad_scale = None
        if ctx.needs_input_grad[1]:
            nearest = nearest_level(u, levels, ties_up=ctx.ties_up)
            grad_scale = (grad * torch.where(inside, nearest - u, nearest)).sum_to_size(scale.shape)
        return grad_x, grad_scale, None, None


def nearest_level(u: Tensor, levels: Tensor, *, ties_up: bool = False) -> Tensor:
    """The level nearest to each value; ties go to the lower one, or up. NaN stays. Shapes: u any, levels ascending."""
    middles = (levels[1:] + levels[:-1]) / 2
    nearest = levels[torch.searchsorted(middles, u.contiguous(), right=ties_up)]
    return torch.where(u.isnan(), u, nearest)


def fake_quantize(
    x: Tensor, scale: Tensor, zero_point: Tensor, scheme: Scheme, *, noise: Tensor | None = None
) -> Tensor:
    """Quantize and dequantize: x̂ = s (clip(round(x / s) + z, quant_min, quant_max) - z).

    Differentiable in x, scale and zero_point (see `FakeQuantize`). The scale has the shape that the scheme's
    granularity says; `noise`, uniform in [0, 1), is for stochastic rounding alone.

    >>> fake_quantize(torch.tensor([0.24, 0.26, 9.0]), torch.tensor(0.5), torch.tensor(0), Scheme(bits=4)).tolist()
    [0.0, 0.5, 3.5]
    """
    scale = expand(scale.to(x.dtype), x.dim(), scheme.granularity)
    if isinstance(scheme.grid, Codebook):
        raise SettingError("a codebook has values of its own: its quantizer looks them up")
    if not isinstance(scheme.grid, Uniform):
        table = torch.tensor(scheme.levels, dtype=x.dtype, device=x.device)
        ties_up = isinstance(scheme.grid, MidRise)
        return FakeQuantizeToLevels.apply(x, scale, table, ties_up)  # type: ignore[no-any-return, no-untyped-call]
    zero_point = expand(zero_point, x.dim(), scheme.granularity)
    return FakeQuantize.apply(  # type: ignore[no-any-return, no-untyped-call]
        x, scale, zero_point, scheme.quant_min, scheme.quant_max, scheme.rounding, noise
    )
