"""TQT: the threshold of a power-of-two scale is learned (Jain et al., MLSys 2020, arXiv:1903.08066)."""

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from isobit.core.errors import UnsupportedError
from isobit.core.granularity import expand
from isobit.core.grid import Uniform
from isobit.core.qparams import SMALLEST_SCALE, QParams
from isobit.core.rounding import HalfEven
from isobit.core.scheme import FloatScale, PowerOfTwo, Scheme
from isobit.quantizers.protocol import Role, loads_into_fresh, require_calibrated, rounded, settled


@dataclass(frozen=True, kw_only=True, slots=True)
class Tqt:
    """Settings of TQT. It has none: the scheme and the observer say everything.

    The paper starts weights at 3 standard deviations, which is the observer `mean_std`, and activations at the
    threshold of `kl_divergence`. It doesn't decay thresholds.
    """

    observer: ClassVar[str] = "kl_divergence"
    weight_observer: ClassVar[str] = "mean_std"
    stochastic_rounding: ClassVar[bool] = True
    weight_decay: ClassVar[float | None] = 0.0

    def build(self, scheme: Scheme, *, role: Role = "activation") -> "TqtQuantizer":
        """Raises UnsupportedError for a zero point, 1 bit, a non-uniform grid, or another rounding."""
        del role
        if not scheme.symmetric:
            raise UnsupportedError("TQT has no zero point. Use a symmetric scheme, or LSQ+ to learn an offset")
        if scheme.bits == 1:
            raise UnsupportedError("TQT is not defined for 1 bit: no level would reach the threshold. Use 2 bits")
        if scheme.grid != Uniform() or scheme.rounding != HalfEven():
            raise UnsupportedError(
                "TQT learns the threshold of a uniform grid with rounding half to even. Use such a scheme"
            )
        return TqtQuantizer(scheme)


class TrainedThreshold(torch.autograd.Function):
    """q(x) = clip(round(x / s), n, p) · s with s = 2^(⌈log2 t⌉ - k) (equation 4).

    Gradients, with r = round(x / s) and the straight-through estimator for rounding and for the ceiling:

    - to log2 t (equation 7): s ln 2 · (r - x / s where n <= r <= p; n where r < n; p where r > p)
    - to x (equation 8): 1 where n <= r <= p, else 0
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, log2_threshold: Tensor, scale: Tensor, low: int, high: int, noise: Tensor | None
    ) -> Tensor:
        """Shapes: x any, noise alike; log2_threshold and scale broadcast against it."""
        ctx.save_for_backward(x, scale, noise)
        ctx.low, ctx.high, ctx.shape = low, high, log2_threshold.shape
        return rounded(x / scale, noise).clamp(low, high) * scale

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """See the class."""
        x, scale, noise = ctx.saved_tensors
        u = x / scale
        r = rounded(u, noise)
        inside = (r >= ctx.low) & (r <= ctx.high)
        grad_x = grad * inside if ctx.needs_input_grad[0] else None
        grad_threshold = None
        if ctx.needs_input_grad[1]:
            slope = torch.where(inside, r - u, r.clamp(ctx.low, ctx.high))
            grad_threshold = (grad * slope * scale * math.log(2)).sum_to_size(ctx.shape)
        return grad_x, grad_threshold, None, None, None, None


@final
class TqtQuantizer(nn.Module):
    """Learns log2 t of a threshold t per tensor; per channel or group where the scheme asks for it.

    s = 2^⌈log2 t⌉ / 2^(b - 1) where signed, / 2^b where unsigned (section 3.1); forward and gradients are those
    of `TrainedThreshold`. The scale is a power of two whether the scheme asks for it or not. Until it is
    calibrated, `scheme` asks the observer for a scale that is not rounded: t is the end of the range found,
    s · quant_max, and the ceiling is taken of it alone.
    """

    log2_t: nn.Parameter
    signed: Tensor

    def __init__(self, scheme: Scheme) -> None:
        super().__init__()
        self.scheme = replace(scheme, scale=FloatScale())
        self.log2_t = nn.Parameter(torch.empty(0))
        self.register_buffer("signed", torch.tensor(scheme.signed))
        loads_into_fresh(self)

    def calibrate(self, qparams: QParams) -> None:
        """Start at the end of the observed range, t = s · quant_max."""
        self.settle(signed=qparams.scheme.signed)
        log2_t = (qparams.scale.detach().double() * self.scheme.quant_max).log2()
        nearest = log2_t.round()  # a scale is float32: its last bit must not lift the threshold 1 to the next power
        self.log2_t.data = torch.where((log2_t - nearest).abs() < 1e-6, nearest, log2_t).float()
        self.signed = torch.tensor(qparams.scheme.signed, device=qparams.scale.device)

    def scale(self) -> Tensor:
        """s, a power of two of the shape of log2 t; without a gradient."""
        exponent = self.log2_t.detach().ceil() - (self.scheme.bits - int(self.scheme.signed))
        largest = -math.log2(SMALLEST_SCALE)
        return torch.exp2(exponent.clamp(-largest, largest))

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """Shapes: x as calibrated, with any batch size; raises CalibrationError before calibration."""
        require_calibrated(self.log2_t)
        scheme, granularity = self.scheme, self.scheme.granularity
        scale = expand(self.scale().to(x.dtype), x.dim(), granularity)
        log2_t = expand(self.log2_t.to(x.dtype), x.dim(), granularity)
        return TrainedThreshold.apply(  # type: ignore[no-any-return, no-untyped-call]
            x, log2_t, scale, scheme.quant_min, scheme.quant_max, noise
        )

    def grid(self) -> QParams:
        """The power-of-two scale of the learned threshold, and zero points of 0."""
        require_calibrated(self.log2_t)
        scale = self.scale()
        return QParams(scale, torch.zeros_like(scale, dtype=torch.int32), self.scheme)

    def extra_repr(self) -> str:
        """The scheme in words."""
        return f"{self.scheme}, learned"

    def settle(self, *, signed: bool) -> None:
        """Take the sign that calibration saw; from now on the scale is a power of two."""
        self.scheme = replace(settled(self.scheme, signed=signed), scale=PowerOfTwo())
