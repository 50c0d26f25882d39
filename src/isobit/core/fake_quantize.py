"""Fake quantization: integers in the forward pass, a hand-written gradient in the backward pass."""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from isobit.core.errors import SettingError
from isobit.core.float16 import Cast
from isobit.core.geometric import Snap
from isobit.core.granularity import expand
from isobit.core.grid import Codebook, Float16, Geometric, MidRise, Uniform
from isobit.core.rounding import HalfEven, Rounding, Stochastic, round_to_integer
from isobit.core.scheme import Scheme

Levels = tuple[int, ...]
"""Levels of a grid, ascending."""


class FakeQuantize(torch.autograd.Function):
    """x̂ = s (q - z) with q = clip(round(x / s) + z, low, high).

    Gradients, with u = x / s and the straight-through estimator for rounding (Jacob et al. 2018; the one to
    the scale is equation 3 of LSQ, arXiv:1902.08153; the one to the zero point equation 5 of LSQ+,
    arXiv:2004.09576):

    - to x: 1 where low < u + z < high, else 0
    - to s: round(u) - u inside; low - z below; high - z above
    - to z: 0 inside; -s outside

    Under stochastic rounding, round(u) is the integer that was drawn. Scale and zero point broadcast against x; their
    gradients are summed to their own shapes. Plain tensor operations alone, so `torch.compile` fuses it and
    `torch.export` keeps a dynamic batch.
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
        ctx.save_for_backward(x, scale, zero_point, noise)
        ctx.low, ctx.high, ctx.rounding = low, high, rounding
        ctx.in_pieces = in_pieces(x, scale, zero_point) and isinstance(rounding, HalfEven)
        z = zero_point.to(x.dtype)
        if ctx.in_pieces:
            return _forward_in_pieces(x, scale, zero_point, low, high)
        q = round_to_integer(x / scale, rounding, noise) + z
        return (q.clamp(low, high) - z) * scale

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """See the class."""
        x, scale, zero_point, noise = ctx.saved_tensors
        z = zero_point.to(x.dtype)
        if ctx.in_pieces and not ctx.needs_input_grad[2]:
            found = _backward_in_pieces(grad, x, scale, zero_point, ctx.low, ctx.high, to_scale=ctx.needs_input_grad[1])
            return *found, None, None, None, None, None
        u = x / scale
        v = u + z
        inside = (v > ctx.low) & (v < ctx.high)
        grad_x = grad_scale = grad_zero_point = None
        if ctx.needs_input_grad[0]:
            grad_x = grad * inside
        if ctx.needs_input_grad[1]:
            clipped = torch.where(v <= ctx.low, ctx.low - z, ctx.high - z)
            slope = torch.where(inside, round_to_integer(u, ctx.rounding, noise) - u, clipped)
            grad_scale = (grad * slope).sum_to_size(scale.shape)
        if ctx.needs_input_grad[2]:
            grad_zero_point = (grad * torch.where(inside, 0.0, -scale)).sum_to_size(zero_point.shape)
        return grad_x, grad_scale, grad_zero_point, None, None, None, None


PIECE = 1 << 17
"""Values of a piece: what is computed of it in between stays in a core's cache."""


def in_pieces(x: Tensor, scale: Tensor, zero_point: Tensor) -> bool:
    """Whether `x` is so large that it is worth going through it piece by piece: eager, on a CPU, with one scale and a
    whole zero point.

    A step of so simple arithmetic takes as long as moving its tensor through memory; in pieces all steps together do.
    """
    if torch.compiler.is_compiling() or x.device.type != "cpu" or x.numel() < 2 * PIECE or scale.numel() != 1:
        return False
    if zero_point.is_floating_point():
        return False
    return type(x) in (Tensor, torch.nn.Parameter) and _is_dense(x)


def _is_dense(x: Tensor) -> bool:
    return x.is_contiguous() or (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last))


def _pieces(x: Tensor) -> tuple[Tensor, ...]:
    """Views of a dense tensor, in the order of its memory."""
    return (x if x.is_contiguous() else x.permute(0, 2, 3, 1)).view(-1).split(PIECE)  # type: ignore[no-untyped-call, no-any-return]


def _forward_in_pieces(x: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int) -> Tensor:
    z, s = int(zero_point), scale.reshape(())
    y = torch.empty_like(x)
    for piece, out in zip(_pieces(x), _pieces(y), strict=True):
        torch.div(piece, s, out=out)
        out.round_().clamp_(low - z, high - z).mul_(s)
    return y


def _backward_in_pieces(
    grad: Tensor, x: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int, *, to_scale: bool
) -> tuple[Tensor, Tensor | None]:
    """The gradients to x and s; the latter as Σ g q̂ - Σ g_x u, which is the formula of the class summed."""
    if grad.stride() != x.stride():
        grad = torch.empty_like(x).copy_(grad)
    z, s = int(zero_point), scale.reshape(())
    grad_x, total = torch.empty_like(x), torch.zeros((), dtype=x.dtype)
    for g, piece, out in zip(_pieces(grad), _pieces(x), _pieces(grad_x), strict=True):
        u = piece / s
        torch.ops.aten.hardtanh_backward.grad_input(g, u, low - z, high - z, grad_input=out)  # g strictly inside
        if to_scale:
            total -= torch.dot(out, u)
            total += torch.dot(g, u.round_().clamp_(low - z, high - z))
    return grad_x, total.reshape(scale.shape) if to_scale else None


class FakeQuantizeToLevels(torch.autograd.Function):
    """x̂ = s · (the level nearest to x / s, or drawn); gradients as in `FakeQuantize` with z = 0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, levels: Levels, ties_up: bool, noise: Tensor | None) -> Tensor:
        """Shapes: x any; scale broadcasts against it; noise as x."""
        ctx.save_for_backward(x, scale, noise)
        ctx.levels, ctx.ties_up = levels, ties_up
        return _a_level(x / scale, levels, ties_up, noise) * scale

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """See the class."""
        x, scale, noise = ctx.saved_tensors
        u = x / scale
        inside = (u > ctx.levels[0]) & (u < ctx.levels[-1])
        grad_x = grad * inside if ctx.needs_input_grad[0] else None
        grad_scale = None
        if ctx.needs_input_grad[1]:
            level = _a_level(u, ctx.levels, ctx.ties_up, noise)
            grad_scale = (grad * torch.where(inside, level - u, level)).sum_to_size(scale.shape)
        return grad_x, grad_scale, None, None, None


def _a_level(u: Tensor, levels: Levels, ties_up: bool, noise: Tensor | None) -> Tensor:
    return nearest_level(u, levels, ties_up=ties_up) if noise is None else drawn_level(u, levels, noise)


FEW = 32
"""Levels up to which comparing with each of them is faster than a search, where the comparisons are one kernel."""


def nearest_level(u: Tensor, levels: Levels, *, ties_up: bool = False) -> Tensor:
    """The level nearest to each value; ties go to the lower one, or up. NaN stays. Shapes: u any; levels ascend."""
    middles = [(a + b) / 2 for a, b in pairwise(levels)]
    if len(levels) <= FEW and torch.compiler.is_compiling():
        nearest = torch.full_like(u, levels[0])
        for middle, a, b in zip(middles, levels, levels[1:], strict=False):
            nearest = nearest + (u >= middle if ties_up else u > middle).to(u.dtype) * (b - a)  # exact: integers
    else:
        table, between = (torch.tensor(values, dtype=u.dtype, device=u.device) for values in (levels, middles))
        nearest = table[torch.searchsorted(between, u.contiguous(), right=ties_up)]
    return torch.where(u.isnan(), u, nearest)


def drawn_level(u: Tensor, levels: Levels, noise: Tensor) -> Tensor:
    """One of the two levels a <= u < b, b with probability (u - a) / (b - a), so that its mean is u; NaN stays.

    Outside, the first or last level. Shapes: u any; noise, uniform in [0, 1), alike; levels ascend.
    """
    if len(levels) <= FEW and torch.compiler.is_compiling():
        drawn = torch.full_like(u, levels[0])
        for lower, upper in pairwise(levels):
            drawn = drawn + (noise < (u - lower) / (upper - lower)).to(u.dtype) * (upper - lower)
    else:
        table = torch.tensor(levels, dtype=u.dtype, device=u.device)
        above = torch.searchsorted(table, u.contiguous(), right=True).clamp(1, len(levels) - 1)
        a, b = table[above - 1], table[above]
        drawn = torch.where(noise < (u - a) / (b - a), b, a)
    return torch.where(u.isnan(), u, drawn)


def fake_quantize(
    x: Tensor, scale: Tensor, zero_point: Tensor, scheme: Scheme, *, noise: Tensor | None = None
) -> Tensor:
    """Quantize and dequantize: x̂ = s (clip(round(x / s) + z, quant_min, quant_max) - z).

    Differentiable in x, scale and zero_point (see `FakeQuantize`). The scale has the shape that the scheme's
    granularity says. With `noise`, uniform in [0, 1) and of the shape of x, rounding is stochastic whatever the
    scheme's rule is: a level is drawn so that x is its mean, inside the range, on any grid.

    >>> fake_quantize(torch.tensor([0.24, 0.26, 9.0]), torch.tensor(0.5), torch.tensor(0), Scheme(bits=4)).tolist()
    [0.0, 0.5, 3.5]
    """
    if isinstance(scheme.grid, Float16):
        return Cast.apply(x, scheme.grid)  # type: ignore[no-any-return, no-untyped-call]
    if isinstance(scheme.grid, Geometric):
        return Snap.apply(x, scale, scheme.grid, scheme.bits)  # type: ignore[no-any-return, no-untyped-call]
    scale = expand(scale.to(x.dtype), x.dim(), scheme.granularity)
    if isinstance(scheme.grid, Codebook):
        raise SettingError("a codebook has values of its own: its quantizer looks them up")
    if not isinstance(scheme.grid, Uniform):
        ties_up = isinstance(scheme.grid, MidRise)
        return FakeQuantizeToLevels.apply(x, scale, scheme.levels, ties_up, noise)  # type: ignore[no-any-return, no-untyped-call]
    zero_point = expand(zero_point, x.dim(), scheme.granularity)
    rounding = scheme.rounding if noise is None else Stochastic()
    return FakeQuantize.apply(  # type: ignore[no-any-return, no-untyped-call]
        x, scale, zero_point, scheme.quant_min, scheme.quant_max, rounding, noise
    )
