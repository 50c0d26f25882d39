"""DoReFa-Net: tanh-normalised weights, activations clipped to [0, 1] (Zhou et al. 2016, arXiv:1606.06160)."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from isobit.core.errors import UnsupportedError
from isobit.core.fake_quantize import fake_quantize
from isobit.core.granularity import blocks, from_blocks
from isobit.core.grid import MidRise, Uniform
from isobit.core.qparams import SMALLEST_SCALE, QParams, scale_and_zero_point
from isobit.core.rounding import HalfEven
from isobit.core.scheme import PowerOfTwo, Scheme
from isobit.quantizers.protocol import Role, loads_into_fresh, require_calibrated

WIDEST_MID_RISE = 7
"""The most bits whose odd levels, up to 2^bits - 1, fit a signed byte."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DoReFa:
    """Settings of DoReFa-Net. `zero_level` puts tanh-normalised weights on the ordinary integer grid, as MQBench does.

    Without `unit_range`, tanh(w) keeps its range in place of the paper's [-1, 1]. That is for weights whose magnitude
    counts: with a batch norm folded into them (strategies 0 to 4), or with none behind. Under strategy 4 a fixed range
    lets the running statistics drift for ever: what is divided by them does not depend on them.
    The paper's grid of weights, the odd integers over 2^b - 1, has no zero, and from 8 bits on its levels do not fit
    a byte. So weights of 8 bits and more, and those of a narrow or asymmetric scheme, always take the ordinary grid.
    """

    observer: ClassVar[str] = "min_max"
    stochastic_rounding: ClassVar[bool] = True
    zero_level: bool = False
    unit_range: bool = True

    def build(self, scheme: Scheme, *, role: Role = "activation") -> nn.Module:
        """Raises UnsupportedError for what DoReFa has no form for: other grids, roundings, scales and signs."""
        if isinstance(scheme.scale, PowerOfTwo) and (role == "activation" or self.unit_range):
            way = "`lsq` or `tqt`" if role == "activation" else "`lsq` or `tqt`, or set unit_range to false"
            raise UnsupportedError(f"DoReFa fixes the range at 1, so its scale is no power of two: use {way}")
        if scheme.rounding != HalfEven():
            raise UnsupportedError("DoReFa rounds to nearest: use a scheme with the rounding HalfEven")
        if role == "activation":
            return DoReFaActivation(_checked_activation(scheme))
        return DoReFaWeight(self._weight_scheme(scheme), unit_range=self.unit_range)

    def _weight_scheme(self, scheme: Scheme) -> Scheme:
        if scheme.grid not in (Uniform(), MidRise()):
            raise UnsupportedError("DoReFa's weights have evenly spaced levels: use a uniform or a mid-rise grid")
        if scheme.symmetric and not scheme.signed:
            raise UnsupportedError("DoReFa's weights have both signs: use a signed scheme, or one with a zero point")
        ordinary = scheme.narrow or not scheme.symmetric or scheme.bits > WIDEST_MID_RISE or self.zero_level
        if ordinary and scheme.bits == 1:
            raise UnsupportedError("1 bit has no room for a level at 0: use a symmetric scheme, without `zero_level`")
        return replace(scheme, grid=Uniform() if ordinary else MidRise(), adapt_sign=False)


def _checked_activation(scheme: Scheme) -> Scheme:
    if scheme.grid != Uniform():
        raise UnsupportedError("DoReFa's activations have evenly spaced levels: use a uniform grid")
    if scheme.signed and scheme.bits == 1:
        raise UnsupportedError("DoReFa's activations of 1 bit are {0, 1}: use an unsigned scheme, or 2 bits")
    return scheme


class RoundStraightThrough(torch.autograd.Function):
    """x̂ on the grid of scale and zero point; the gradient to x is the one to x̂ everywhere (equation 6)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, scheme: Scheme, noise: Tensor | None) -> Tensor:
        """Shapes: x any, noise alike; scale and zero_point as the scheme's granularity says."""
        del ctx
        return fake_quantize(x, scale, zero_point, scheme, noise=noise)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """See the class."""
        del ctx
        return grad, None, None, None, None


def normalise(w: Tensor) -> Tensor:
    """tanh(w) / max|tanh(w)| with the maximum over the layer, in [-1, 1]; part of equation 9. Differentiable."""
    squashed = w.tanh()
    return squashed / squashed.abs().amax().clamp(min=SMALLEST_SCALE)


@final
class DoReFaWeight(nn.Module):
    """Equation 9: ŵ = 2 quantize_b(tanh(w) / (2 max|tanh(w)|) + 1/2) - 1, a mid-rise grid of scale 1 / (2^b - 1).

    quantize_b(r) = round((2^b - 1) r) / (2^b - 1) hands its gradient on (equations 5, 6); tanh and the maximum are
    differentiated. One bit (equation 7) is ŵ = sign(w) mean|w|, with the gradient to w that to ŵ. With one scale per
    channel or group the maximum stays that of the layer, and each scale fits its own normalised weights. On the
    ordinary integer grid the scale is that of their minimum and maximum.

    Nothing is learned. Scale and zero point follow the weights in training and stay as they are at inference. They
    start from the calibrated range of w; for one bit that is mean|w| with the observer `mse`. Shapes: w as calibrated.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, scheme: Scheme, *, unit_range: bool) -> None:
        super().__init__()
        self.scheme, self.unit_range = scheme, unit_range
        self.register_buffer("scale", torch.empty(0))
        self.register_buffer("zero_point", torch.empty(0, dtype=torch.int32))
        loads_into_fresh(self)

    def calibrate(self, qparams: QParams) -> None:
        """Start from the range of w: tanh keeps its order, so the bounds are those of tanh(w)."""
        low, high = (bound.detach() for bound in qparams.range())
        if self.scheme.bits > 1:
            largest = torch.maximum(low.abs(), high.abs()).max().tanh().clamp(min=SMALLEST_SCALE)
            largest = largest if self.unit_range else torch.ones_like(largest)
            low, high = low.tanh() / largest, high.tanh() / largest
        self.scale, self.zero_point = scale_and_zero_point(low, high, self.scheme)

    def forward(self, w: Tensor, noise: Tensor | None = None) -> Tensor:
        """Shapes: w as calibrated; raises CalibrationError before calibration."""
        require_calibrated(self.scale)
        x = w
        if self.scheme.bits > 1:
            x = normalise(w) if self.unit_range else torch.tanh(w)
        scale, zero_point = self.scale, self.zero_point
        if self.training:
            scale, zero_point = self._range(x.detach())
            self.scale.copy_(scale)
            self.zero_point.copy_(zero_point)
        y: Tensor = RoundStraightThrough.apply(x, scale, zero_point, self.scheme, noise)  # type: ignore[no-untyped-call]
        return y

    def grid(self) -> QParams:
        """The scale and zero point of the last training step, or of calibration."""
        require_calibrated(self.scale)
        return QParams(self.scale.detach(), self.zero_point, self.scheme)

    def _range(self, x: Tensor) -> tuple[Tensor, Tensor]:
        granularity, shape = self.scheme.granularity, tuple(x.shape)
        rows = blocks(x, granularity)
        if self.scheme.bits == 1:
            magnitude = from_blocks(rows.abs().mean(1), shape, granularity)
            low, high, of_layer = -magnitude, magnitude, x.abs().mean()
        else:
            low, high = (from_blocks(bound, shape, granularity) for bound in (rows.amin(1), rows.amax(1)))
            of_layer = torch.ones_like(high) if self.unit_range else high.amax().clamp(min=SMALLEST_SCALE)
        empty = (low == 0) & (
            high == 0
        )  # a channel of zeros: the paper's range, that of the layer, has no such trouble
        return scale_and_zero_point(low, torch.where(empty, of_layer, high), self.scheme)

    def extra_repr(self) -> str:
        """The scheme in words."""
        return f"{self.scheme}, tanh-normalised"


@final
class DoReFaActivation(nn.Module):
    """Equation 11: x̂ = quantize_b(clip(x, 0, 1)); straight-through inside the interval, no gradient outside.

    Where calibration saw negative values the interval is [-1, 1], as in MQBench: a signed scheme has the scale
    1 / quant_max, an asymmetric one 2 / (2^b - 1). Nothing is learned, and of calibration only the sign is used.
    Shapes: x any.
    """

    scale: Tensor
    zero_point: Tensor
    signed: Tensor

    def __init__(self, scheme: Scheme) -> None:
        super().__init__()
        self.scheme = scheme
        self.register_buffer("scale", torch.empty(0))
        self.register_buffer("zero_point", torch.empty(0, dtype=torch.int32))
        self.register_buffer("signed", torch.tensor(scheme.signed))
        loads_into_fresh(self)

    def calibrate(self, qparams: QParams) -> None:
        """Take the settled sign."""
        self.scheme = self.scheme.resolve_sign(all_non_negative=not qparams.scheme.signed)
        self.signed = torch.tensor(self.scheme.signed, device=qparams.scale.device)
        low = -(qparams.range()[0] < 0).to(qparams.scale.dtype)
        self.scale, self.zero_point = scale_and_zero_point(low, torch.ones_like(low), self.scheme)

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """Shapes: x as calibrated, with any batch size; raises CalibrationError before calibration."""
        require_calibrated(self.scale)
        return fake_quantize(x, self.scale, self.zero_point, self.scheme, noise=noise)

    def grid(self) -> QParams:
        """A scale of 1 / quant_max, and the zero point."""
        require_calibrated(self.scale)
        return QParams(self.scale.detach(), self.zero_point, self.scheme)

    def extra_repr(self) -> str:
        """The scheme in words."""
        return f"{self.scheme}, clipped to 1"
