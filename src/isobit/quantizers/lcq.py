"""LCQ: learnable companding, levels placed by a learned function (Yamamoto, CVPR 2021, arXiv:2103.07156)."""

from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from isobit.core.errors import SettingError, UnsupportedError
from isobit.core.granularity import blocks, expand, from_blocks
from isobit.core.grid import Codebook, Uniform
from isobit.core.qparams import SMALLEST_SCALE, QParams
from isobit.core.rounding import HalfEven
from isobit.core.scheme import PowerOfTwo, Scheme
from isobit.quantizers.protocol import Role, loads_into_fresh, require_calibrated, straight_through


@dataclass(frozen=True, kw_only=True, slots=True)
class Lcq:
    """Settings of LCQ: `intervals` is K. `alpha` is where the threshold starts, in standard deviations.

    Without `normalise_weights`, α is in units of the weights and starts at the observed range.
    """

    observer: ClassVar[str] = "mean_std"
    intervals: int = 16
    alpha: float = 3.0
    normalise_weights: bool = True

    def __post_init__(self) -> None:
        if self.intervals < 1:
            raise SettingError(f"LCQ needs at least 1 interval, got {self.intervals}")
        if not self.alpha > 0:
            raise SettingError(f"the threshold alpha of LCQ has to be above 0, got {self.alpha}")

    def build(self, scheme: Scheme, *, role: Role = "activation") -> "LcqQuantizer":
        """Raises UnsupportedError for activations, 1 or more than 8 bits, and what a codebook cannot follow."""
        if role != "weight":
            raise UnsupportedError(
                "LCQ's activations have learned thresholds and levels that no engine computes from x: use `lsq` or "
                "`lsq_plus` for activations"
            )
        if not 2 <= scheme.bits <= 8:
            raise UnsupportedError(f"LCQ has weights of 2 to 8 bits, not {scheme.bits}: use `bwn` for 1, `lsq` above")
        if not (scheme.signed and scheme.symmetric):
            raise UnsupportedError("LCQ's levels lie alike on both sides of 0: use a signed, symmetric scheme")
        if isinstance(scheme.scale, PowerOfTwo):
            raise UnsupportedError("LCQ's scale follows the deviation of the weights: use `tqt` for powers of two")
        if scheme.grid not in (Uniform(), Codebook()) or scheme.rounding != HalfEven():
            raise UnsupportedError("LCQ has levels of its own: use a uniform grid with rounding to nearest")
        scheme = replace(scheme, grid=Codebook(), narrow=False, adapt_sign=False)
        return LcqQuantizer(scheme, settings=self)


def compress(v: Tensor, theta: Tensor) -> Tensor:
    """f(v) = γ_k (v - d_k) + β_k in the interval [d_k, d_(k+1)) of v, d_k = k / K. Differentiable in θ.

    The slopes are γ = K softmax(θ), and β_k = (γ_0 + … + γ_(k-1)) / K, so that f rises from f(0) = 0 to f(1) = 1.
    Shapes: v any, in [0, 1]; theta (K,).
    """
    count = len(theta)
    shares = theta.softmax(0)
    k = (v.detach() * count).long().clamp(max=count - 1)
    return (v - k.to(v.dtype) / count) * (shares * count)[k] + (shares.cumsum(0) - shares)[k]


def expand_levels(y: Tensor, theta: Tensor) -> Tensor:
    """f⁻¹(y) = (y - β_k) / γ_k + d_k in the interval [β_k, β_(k+1)) of y. Differentiable in y and θ. Shapes: as f."""
    count = len(theta)
    shares = theta.softmax(0)
    starts = shares.cumsum(0) - shares
    k = torch.searchsorted(starts[1:].detach(), y.detach().contiguous(), right=True)
    return (y - starts[k]) / (shares * count)[k] + k.to(y.dtype) / count


@final
class LcqQuantizer(nn.Module):
    """ŵ = σ sign(w) α f⁻¹(round(s f(v)) / s) with v = min(|w| / (σ α), 1) and s = 2^(b-1) - 1, f learned on [0, 1].

    f is piecewise linear over K equal intervals, with slopes K softmax(θ) (`compress`), and f⁻¹ its inverse. σ is the
    deviation of the weights that share an α, without gradient, and multiplied back, so that α counts deviations while
    the weights keep their size; no mean is taken off. That is our reading of the paper's limited weight normalisation,
    for which there is no public code.

    Gradients, all straight-through the rounding: to w, 1 inside, 0 where clipped; to α, σ sign(w) (|ŵ| / (σ α) - v)
    inside and σ sign(w) where clipped; to θ, that of f⁻¹ and, through the rounding, that of f. α starts at 3, one for a
    tensor, channel or group; θ, one for the layer, starts at 0: even levels. 2-bit weights are {-1, 0, 1}, which leaves
    nothing to place: they have no θ. The paper also rounds the levels to 8 bits for a table of integers; here they are
    the float values that the grid declares.

    The grid is the 2^b - 1 values of the expander, times σ α. Shapes: w as calibrated.
    """

    alpha: nn.Parameter
    theta: nn.Parameter | None
    deviation: Tensor

    def __init__(self, scheme: Scheme, *, settings: Lcq) -> None:
        super().__init__()
        self.scheme, self.settings = scheme, settings
        self.alpha = nn.Parameter(torch.empty(0))
        self.register_parameter("theta", nn.Parameter(torch.zeros(settings.intervals)) if scheme.bits > 2 else None)
        self.register_buffer("deviation", torch.empty(0))
        loads_into_fresh(self)

    def calibrate(self, qparams: QParams) -> None:
        """Start α at its constant or at the observed range, which then stands for 3 deviations until weights pass."""
        observed = torch.maximum(*(bound.detach().abs() for bound in qparams.range())).clamp(min=SMALLEST_SCALE)
        start = self.settings.alpha
        normalises = self.settings.normalise_weights
        self.alpha.data = torch.full_like(observed, start) if normalises else observed.clone()
        self.deviation = observed / start if normalises else torch.ones_like(observed)
        if self.theta is not None:
            self.theta.data = torch.zeros(self.settings.intervals, device=observed.device)

    def levels(self) -> Tensor:
        """f⁻¹(i / s) for i = -s … s, ascending. Shape: (2 s + 1,)."""
        steps = self._steps()
        y = torch.arange(steps + 1, dtype=self.alpha.dtype, device=self.alpha.device) / steps
        positive = y if self.theta is None else expand_levels(y, self.theta.detach())
        return torch.cat([-positive[1:].flip(0), positive])

    def scale(self, deviation: Tensor) -> Tensor:
        """σ |α|, away from zero. Differentiable in α."""
        return (self.alpha.abs() * deviation).clamp(min=SMALLEST_SCALE)

    def forward(self, w: Tensor) -> Tensor:
        """Shapes: w as calibrated; raises CalibrationError before calibration."""
        require_calibrated(self.alpha)
        deviation = self.deviation
        if self.settings.normalise_weights:
            rows = blocks(w.detach(), self.scheme.granularity).std(1, correction=0).clamp(min=SMALLEST_SCALE)
            deviation = from_blocks(rows, tuple(w.shape), self.scheme.granularity).to(self.deviation.dtype)
            self.deviation.copy_(deviation)
        scale = expand(self.scale(deviation).to(w.dtype), w.dim(), self.scheme.granularity)
        v = (w.abs() / scale).clamp(max=1)
        index, companded = self._compand(v)
        sign = w.detach().sign()
        on_grid = self.levels().to(w.dtype)[(sign * index).long() + self._steps()] * scale.detach()
        return straight_through(on_grid, sign * (companded + (v - v.detach())) * scale)

    def grid(self) -> QParams:
        """The values of the expander, at the scale σ α of the last weights that passed."""
        require_calibrated(self.alpha)
        scale = self.scale(self.deviation).detach()
        return QParams(scale, torch.zeros_like(scale, dtype=torch.int32), self.scheme, self.levels())

    def extra_repr(self) -> str:
        """The scheme in words."""
        return f"{self.scheme}, learned"

    def _steps(self) -> int:
        return (1 << (self.scheme.bits - 1)) - 1

    def _compand(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """The number of the level for each magnitude, and f⁻¹ of it with the gradient to θ alone."""
        steps = self._steps()
        if self.theta is None:
            index = (v.detach() * steps).round()
            return index, index / steps
        y = compress(v.detach(), self.theta.to(v.dtype))
        index = (y.detach() * steps).round()
        return index, expand_levels(straight_through(index / steps, y), self.theta.to(v.dtype))
