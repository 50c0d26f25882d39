"""N2UQ: weights whose levels are equally used (Liu et al., CVPR 2022, arXiv:2111.14826, the part on weights)."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from isobit.core.errors import UnsupportedError
from isobit.core.fake_quantize import fake_quantize
from isobit.core.granularity import blocks, expand, from_blocks
from isobit.core.grid import MidRise, Uniform
from isobit.core.qparams import SMALLEST_SCALE, QParams
from isobit.core.rounding import HalfEven
from isobit.core.scheme import PowerOfTwo, Scheme
from isobit.quantizers.protocol import Role, loads_into_fresh, require_calibrated

WIDEST = 7
"""The most bits whose odd levels, up to 2^bits - 1, fit a signed byte."""


@dataclass(frozen=True, kw_only=True, slots=True)
class N2uq:
    """Settings of N2UQ's weights. `unit_gradient` passes the gradient on to w / c in place of w, as the authors' code.

    Their gradient to w is then g / c, with c the clipping threshold, a few hundredths: it goes with Adam.
    """

    observer: ClassVar[str] = "mean_abs"
    stochastic_rounding: ClassVar[bool] = True
    unit_gradient: bool = False

    def build(self, scheme: Scheme, *, role: Role = "activation") -> "N2uqQuantizer":
        """Raises UnsupportedError for activations, more than 7 bits, and levels that are no odd integers."""
        if role != "weight":
            raise UnsupportedError(
                "N2UQ's activations have learned, uneven thresholds, while an engine rounds x to the nearest of even "
                "levels: use `lsq` or `lsq_plus` for activations"
            )
        if not (scheme.signed and scheme.symmetric):
            raise UnsupportedError("N2UQ's weights have 2^bits levels around 0: use a signed, symmetric scheme")
        if scheme.bits > WIDEST:
            raise UnsupportedError(
                f"N2UQ's levels are odd integers, which fit a byte up to {WIDEST} bits, not {scheme.bits}: use `lsq`"
            )
        if scheme.narrow:
            raise UnsupportedError("N2UQ's levels are as many on both sides already: use a scheme without `narrow`")
        if scheme.grid not in (Uniform(), MidRise()) or scheme.rounding != HalfEven():
            raise UnsupportedError("N2UQ has even steps: use a uniform or mid-rise grid with rounding to nearest")
        return N2uqQuantizer(replace(scheme, grid=MidRise(), adapt_sign=False), unit_gradient=self.unit_gradient)


class PassGradient(torch.autograd.Function):
    """The quantized weights; their gradient, over a divisor, goes to w, clipped or not."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, quantized: Tensor, divisor: Tensor) -> Tensor:
        """Shapes: w and quantized alike; divisor broadcasts against them."""
        del w
        ctx.save_for_backward(divisor)
        return quantized.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """See the class."""
        (divisor,) = ctx.saved_tensors
        return grad / divisor, None, None


def threshold(w: Tensor, scheme: Scheme) -> Tensor:
    """c = mean|w| (2^b - 1) / 2^(b-1) over the weights that share it. Shape: that of the scale.

    Where weights are evenly spread over [-c', c'], mean|w| is c' / 2, and c = c' (1 - 2^-b): every level is used alike.
    """
    rows = blocks(w.detach().abs(), scheme.granularity).mean(1)
    return from_blocks(rows * _reach(scheme), tuple(w.shape), scheme.granularity)


@final
class N2uqQuantizer(nn.Module):
    """ŵ = s · (the nearest odd integer to w / s, clipped to ±(2^b - 1)) with s = c / (2^b - 1).

    In the paper's form, ŵ = c (2 round((2^b - 1) (clip(w / c, -1, 1) + 1) / 2) / (2^b - 1) - 1): the entropy-preserving
    scaling by c = mean|w| (2^b - 1) / 2^(b-1), which follows w in every forward pass and carries no gradient; c is
    multiplied back, as in the authors' code. 1 bit is mean|w| sign(w). For a power-of-two scheme s is the nearest 2^k,
    and c follows it.

    Nothing is learned but w: its gradient is straight-through, clipped or not, or that over c. `grid` tells the last
    scale. The authors have one c for each filter: use a per-channel scheme. Shapes: w as calibrated.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, scheme: Scheme, *, unit_gradient: bool) -> None:
        super().__init__()
        self.scheme, self.unit_gradient = scheme, unit_gradient
        self.register_buffer("scale", torch.empty(0))
        self.register_buffer("zero_point", torch.empty(0, dtype=torch.int32))
        loads_into_fresh(self)

    def calibrate(self, qparams: QParams) -> None:
        """Until weights pass: the observed range."""
        self.scale = self._rounded(qparams.range()[1].detach() / self.scheme.quant_max)
        self.zero_point = torch.zeros_like(self.scale, dtype=torch.int32)

    def forward(self, w: Tensor, noise: Tensor | None = None) -> Tensor:
        """Shapes: w as calibrated; raises CalibrationError before calibration."""
        require_calibrated(self.scale)
        self.scale.copy_(self._rounded(threshold(w, self.scheme) / self.scheme.quant_max))
        quantized = fake_quantize(w.detach(), self.scale, self.zero_point, self.scheme, noise=noise)
        divisor = self.scale * self.scheme.quant_max if self.unit_gradient else torch.ones_like(self.scale)
        divisor = expand(divisor.to(w.dtype), w.dim(), self.scheme.granularity)
        y: Tensor = PassGradient.apply(w, quantized, divisor)  # type: ignore[no-untyped-call]
        return y

    def grid(self) -> QParams:
        """Half a step between the levels of the last weights that passed, for odd integers."""
        require_calibrated(self.scale)
        return QParams(self.scale.detach(), self.zero_point, self.scheme)

    def extra_repr(self) -> str:
        """The scheme in words."""
        return str(self.scheme)

    def _rounded(self, scale: Tensor) -> Tensor:
        scale = scale.clamp(min=SMALLEST_SCALE)
        return torch.exp2(scale.log2().round()) if isinstance(self.scheme.scale, PowerOfTwo) else scale


def _reach(scheme: Scheme) -> float:
    return ((1 << scheme.bits) - 1) / (1 << (scheme.bits - 1))
