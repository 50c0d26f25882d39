"""Bi-Real Net: a closer gradient for binary activations and weights (Liu et al., ECCV 2018, arXiv:1808.00278)."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from isobit.core.errors import UnsupportedError
from isobit.core.granularity import blocks, expand, from_blocks
from isobit.core.grid import MidRise, Uniform
from isobit.core.qparams import SMALLEST_SCALE, QParams
from isobit.core.rounding import HalfEven
from isobit.core.scheme import PowerOfTwo, Scheme
from isobit.quantizers.protocol import Role, half_of_range, loads_into_fresh, require_calibrated


@dataclass(frozen=True, kw_only=True, slots=True)
class BiReal:
    """Settings of Bi-Real Net. It has none."""

    observer: ClassVar[str] = "mean_abs"

    def build(self, scheme: Scheme, *, role: Role = "activation") -> "BiRealQuantizer":
        """Raises UnsupportedError for more than 1 bit, and for unsigned or asymmetric schemes."""
        if scheme.bits != 1:
            raise UnsupportedError(f"Bi-Real Net has 1 bit, not {scheme.bits}: use `dorefa` or `lsq` for more")
        if not (scheme.signed and scheme.symmetric):
            raise UnsupportedError("Bi-Real Net's levels are -1 and 1: use a signed, symmetric scheme")
        if scheme.grid not in (Uniform(), MidRise()) or scheme.rounding != HalfEven():
            raise UnsupportedError("Bi-Real Net takes the sign: use a uniform or mid-rise grid, rounding to nearest")
        return BiRealQuantizer(replace(scheme, grid=MidRise(), adapt_sign=False), role=role)


class ApproximateSign(torch.autograd.Function):
    """sign(x) with sign(0) = 1; the gradient is 2 + 2x on [-1, 0), 2 - 2x on [0, 1) and 0 elsewhere."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Shapes: x any."""
        ctx.save_for_backward(x)
        one = x.new_ones(())
        return torch.where(x >= 0, one, torch.where(x < 0, -one, x))  # NaN stays NaN

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """See the class."""
        (x,) = ctx.saved_tensors
        slope: Tensor = (2 - 2 * x.abs()).clamp(min=0)
        return grad * slope


class MagnitudeAwareSign(torch.autograd.Function):
    """α sign(w) with sign(0) = 1; the gradient to w is α g where |w| < 1, else 0."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, alpha: Tensor) -> Tensor:
        """Shapes: w any; alpha broadcasts against it."""
        ctx.save_for_backward(w, alpha)
        return torch.where(w >= 0, alpha, -alpha)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """See the class."""
        w, alpha = ctx.saved_tensors
        return grad * alpha * (w.abs() < 1), None


@final
class BiRealQuantizer(nn.Module):
    """Activations sign(x) with the gradient of a quadratic spline; weights α sign(w) with α = mean|w| (section 3.3).

    The gradient to x is that of ApproxSign, 2 - 2|x| for |x| < 1 and 0 outside: closer to the sign's own than a clip's.
    That to w is magnitude-aware, α g 1[|w| < 1], so that small weights change sign sooner; α carries none. It is the
    mean of the weights that share a scale: of a filter, in the paper. Nothing is learned but w. α follows w in
    every forward pass; `grid` tells the last one. Shapes: w as calibrated, activations any.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, scheme: Scheme, *, role: Role) -> None:
        super().__init__()
        self.scheme, self.role = scheme, role
        self.register_buffer("scale", torch.empty(0))
        self.register_buffer("zero_point", torch.empty(0, dtype=torch.int32))
        loads_into_fresh(self)

    def calibrate(self, qparams: QParams) -> None:
        """Weights start at half of the observed range, mean|w| with `mean_abs`; the scale of activations is 1."""
        observed = half_of_range(qparams)
        self.scale = torch.ones_like(observed) if self.role == "activation" else observed.clone()
        self.zero_point = torch.zeros_like(observed, dtype=torch.int32)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: x as calibrated; raises CalibrationError before calibration."""
        require_calibrated(self.scale)
        y: Tensor
        if self.role == "activation":
            y = ApproximateSign.apply(x)  # type: ignore[no-untyped-call]
        else:
            y = MagnitudeAwareSign.apply(x, self._alpha(x.detach()))  # type: ignore[no-untyped-call]
        return y

    def _alpha(self, w: Tensor) -> Tensor:
        rows = blocks(w.abs(), self.scheme.granularity).mean(1).clamp(min=SMALLEST_SCALE)
        if isinstance(self.scheme.scale, PowerOfTwo):
            rows = torch.exp2(rows.log2().round())
        scale = from_blocks(rows, tuple(w.shape), self.scheme.granularity)
        self.scale.copy_(scale)
        return expand(scale, w.dim(), self.scheme.granularity)

    def grid(self) -> QParams:
        """α of the last weights that passed, or 1, for the levels -1 and 1."""
        require_calibrated(self.scale)
        return QParams(self.scale.detach(), self.zero_point, self.scheme)

    def extra_repr(self) -> str:
        """The scheme in words."""
        return str(self.scheme)
