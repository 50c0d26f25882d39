"""QIL: the interval that is quantized is learned (Jung et al., CVPR 2019, arXiv:1808.05779)."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from isobit.core.errors import UnsupportedError
from isobit.core.fake_quantize import fake_quantize
from isobit.core.granularity import expand
from isobit.core.grid import Uniform
from isobit.core.qparams import SMALLEST_SCALE, QParams
from isobit.core.rounding import HalfEven
from isobit.core.scheme import PowerOfTwo, Scheme
from isobit.quantizers.protocol import (
    Role,
    loads_into_fresh,
    power_of_two,
    require_calibrated,
    scale_gradient,
    straight_through,
)

LARGEST_BYTE = 255


@dataclass(frozen=True, kw_only=True, slots=True)
class Qil:
    """Settings of QIL. `learn_gamma` also learns the exponent of the weights' transformer, which is 1 otherwise.

    `prune` learns a pruning threshold for unsigned activations of fewer than 8 bits; otherwise it stays 0. `damp`
    multiplies the gradients of the interval by 1 / sqrt(N quant_max), as MQBench does in place of the paper's lower
    learning rate, and goes with a `learning_rate_scale` of None, which leaves it to the training's settings.
    """

    observer: ClassVar[str] = "min_max"
    stochastic_rounding: ClassVar[bool] = True
    learn_gamma: bool = False
    prune: bool = False
    damp: bool = False
    learning_rate_scale: float | None = 0.01

    def build(self, scheme: Scheme, *, role: Role = "activation") -> nn.Module:
        """Raises UnsupportedError for 1 signed bit, other grids or rounding, and weights that are not symmetric."""
        if scheme.grid != Uniform() or scheme.rounding != HalfEven():
            raise UnsupportedError(
                "QIL learns the interval of a uniform grid with rounding to nearest: use such a scheme"
            )
        if scheme.signed and scheme.symmetric and scheme.bits == 1:
            raise UnsupportedError("QIL needs a level above 0, which 1 signed bit does not have: use 2 bits")
        if role == "activation":
            return QilActivation(scheme, settings=self)
        if not (scheme.signed and scheme.symmetric):
            raise UnsupportedError("QIL's weights lie on both sides of a level at 0: use a signed symmetric scheme")
        if isinstance(scheme.scale, PowerOfTwo):
            raise UnsupportedError("QIL's weights end at 1, so their scale is no power of two: use `tqt` or `lsq`")
        return QilWeight(replace(scheme, narrow=True, adapt_sign=False), settings=self)


def positive(parameter: Tensor) -> Tensor:
    """|p|, away from zero; differentiable."""
    return parameter.abs().clamp(min=SMALLEST_SCALE)


def transform(w: Tensor, center: Tensor, distance: Tensor, gamma: Tensor | float = 1.0) -> Tensor:
    """The transformer of weights: sign(w) times 0 below the interval, 1 above, ((|w| - c) / 2d + 1/2)^γ inside.

    Its derivatives are zero outside the interval. Shapes: w any; the others broadcast against it.
    """
    u = (w.abs() - center) / (2 * distance) + 0.5
    inside = (u > 0) & (u < 1)
    between = torch.where(inside, u, 0.5) ** gamma  # 0.5 is any value at which a power has a finite derivative
    return torch.where(inside, between, (u >= 1).to(w.dtype)) * w.sign()


@final
class QilWeight(nn.Module):
    """ŵ = round(q w̃) / q, q = 2^(b-1) - 1, with w̃ = sign(w) · (0 if |w| < c - d, 1 if |w| > c + d, else (a|w| + b)^γ).

    a = 1 / 2d and b = 1/2 - c / 2d: below c - d weights are pruned, above c + d clipped. The scale is 1 / q, so the
    layer loses the size of its weights, and batch norm has to follow it. Rounding is straight-through; the
    derivatives to w, c, d and γ are those of w̃. c is `center` and d `distance`, one each for a tensor, channel or
    group; both start at half the calibrated range, max|w| / 2. Shapes: w as calibrated.
    """

    center: nn.Parameter
    distance: nn.Parameter
    gamma: nn.Parameter | None
    zero_point: Tensor

    def __init__(self, scheme: Scheme, *, settings: Qil) -> None:
        super().__init__()
        self.scheme, self.damp = scheme, settings.damp
        self.learning_rate_scale = settings.learning_rate_scale
        self.center = nn.Parameter(torch.empty(0))
        self.distance = nn.Parameter(torch.empty(0))
        self.register_parameter("gamma", nn.Parameter(torch.ones(())) if settings.learn_gamma else None)
        self.register_buffer("zero_point", torch.empty(0, dtype=torch.int32))
        loads_into_fresh(self)

    def calibrate(self, qparams: QParams) -> None:
        """Start with the interval [0, max|w|]."""
        half = qparams.range()[1].detach() / 2
        self.center.data, self.distance.data = half.clone(), half.clone()
        self.zero_point = torch.zeros_like(half, dtype=torch.int32)

    def forward(self, w: Tensor, noise: Tensor | None = None) -> Tensor:
        """Shapes: w as calibrated; raises CalibrationError before calibration."""
        require_calibrated(self.center)
        center, distance = positive(self.center), positive(self.distance)
        if self.damp and torch.is_grad_enabled():
            g = 1 / math.sqrt(max(w.numel() // center.numel(), 1) * self.scheme.quant_max)
            center, distance = scale_gradient(center, g), scale_gradient(distance, g)
        center, distance = (expand(t.to(w.dtype), w.dim(), self.scheme.granularity) for t in (center, distance))
        gamma = 1.0 if self.gamma is None else positive(self.gamma)
        between = transform(w, center, distance, gamma)
        return fake_quantize(between, self._scale(), self.zero_point, self.scheme, noise=noise)

    def grid(self) -> QParams:
        """A scale of 1 / q."""
        require_calibrated(self.center)
        return QParams(self._scale(), self.zero_point, self.scheme)

    def _scale(self) -> Tensor:
        return torch.full_like(self.center.detach(), 1 / self.scheme.quant_max)

    def extra_repr(self) -> str:
        """The scheme in words."""
        return f"{self.scheme}, learned interval"


@final
class QilActivation(nn.Module):
    """x̄ = round(q x̃) / q with x̃ = clip((x - c) / 2d + 1/2, 0, 1) and q = 2^b - 1, brought back to units of x.

    An engine computes s (clip(round(x / s) + z, 0, q) - z) from x. That is 2d x̄ + c - d for s = 2d / q and an integer
    z = (d - c) / s. So z is rounded, which makes the interval begin at a multiple of s, and the factor 2d and the
    offset stay in the output: batch norm behind the next layer takes them away. Derivatives are those of
    2d x̄ + c - d, straight-through the rounding: to x, 1 inside, else 0; to c, 0 inside, else 1; to d, -1 below, 1 above
    and 2 (x̄ - x̃) inside.

    With `prune`, the interval of an unsigned symmetric scheme of fewer than 8 bits begins at c - d >= 0, as far as its
    levels, in units of s, fit a byte, where they are stored without zero point; that of an asymmetric scheme begins
    anywhere down from there. Without it, an asymmetric scheme has c - d <= 0. Other symmetric schemes have c - d = 0 in
    effect, the clipping threshold c + d and the scale (c + d) / quant_max. c is `center` and d `distance`; they start
    as middle and half length of the calibrated range.
    """

    center: nn.Parameter
    distance: nn.Parameter
    signed: Tensor

    def __init__(self, scheme: Scheme, *, settings: Qil) -> None:
        super().__init__()
        self.scheme = self.asked = scheme
        self.prune, self.damp = settings.prune, settings.damp
        self.learning_rate_scale = settings.learning_rate_scale
        self.center = nn.Parameter(torch.empty(0))
        self.distance = nn.Parameter(torch.empty(0))
        self.register_buffer("signed", torch.tensor(scheme.signed))
        loads_into_fresh(self)

    def calibrate(self, qparams: QParams) -> None:
        """Start with the interval from 0 to the largest value, or the whole range where there is a zero point."""
        self.settle(signed=qparams.scheme.signed)
        self.signed = torch.tensor(qparams.scheme.signed, device=qparams.scale.device)
        low, high = (bound.detach() for bound in qparams.range())
        low = torch.zeros_like(low) if self.asked.symmetric else low
        self.center.data, self.distance.data = (high + low) / 2, (high - low) / 2

    def settle(self, *, signed: bool) -> None:
        """Fix the sign; what prunes has a zero point, at or below the lowest level."""
        scheme = replace(self.asked, adapt_sign=False, signed=signed, narrow=self.asked.narrow and signed)
        prunes = self.prune and scheme.symmetric and not signed and scheme.quant_max < LARGEST_BYTE
        self.scheme = replace(scheme, symmetric=False) if prunes else scheme

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """Shapes: x as calibrated, with any batch size; raises CalibrationError before calibration."""
        require_calibrated(self.center)
        center: Tensor = self.center
        distance = positive(self.distance)
        if self.damp and torch.is_grad_enabled():
            count = max(math.prod(x.shape[1:]) // center.numel(), 1)
            g = 1 / math.sqrt(count * self.scheme.quant_max)
            center, distance = scale_gradient(center, g), scale_gradient(distance, g)
        return fake_quantize(x, *self._scale_and_zero_point(center, distance), self.scheme, noise=noise)

    def grid(self) -> QParams:
        """The scale, and the zero point of the snapped beginning of the interval."""
        require_calibrated(self.center)
        scale, zero_point = self._scale_and_zero_point(self.center.detach(), positive(self.distance.detach()))
        return QParams(scale, zero_point.to(torch.int32), self.scheme)

    def _scale_and_zero_point(self, center: Tensor, distance: Tensor) -> tuple[Tensor, Tensor]:
        lowest, highest = self.scheme.quant_min, self.scheme.quant_max
        symmetric = self.scheme.symmetric
        scale = positive((center + distance) / highest if symmetric else 2 * distance / (highest - lowest))
        if isinstance(self.scheme.scale, PowerOfTwo):
            scale = power_of_two(scale)
        if symmetric:
            return scale, torch.zeros_like(scale)
        start = center - distance
        first = min(lowest, highest - LARGEST_BYTE) if self.prune else lowest
        last = 0 if self.asked.symmetric else highest
        z = (lowest - start / scale).detach().round().clamp(first, last)
        snapped = straight_through((lowest - z) * scale.detach(), start)
        return scale, straight_through(z, lowest - snapped / scale)

    def extra_repr(self) -> str:
        """The scheme in words."""
        return f"{self.scheme}, learned interval"
