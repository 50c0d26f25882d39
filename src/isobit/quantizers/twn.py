"""TWN: ternary weights with one scale (Li and Liu 2016, arXiv:1605.04711)."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from isobit.core.errors import SettingError, UnsupportedError
from isobit.core.granularity import blocks, expand, from_blocks
from isobit.core.grid import Uniform
from isobit.core.qparams import SMALLEST_SCALE, QParams
from isobit.core.rounding import HalfEven
from isobit.core.scheme import PowerOfTwo, Scheme
from isobit.quantizers.protocol import Role, half_of_range, loads_into_fresh, require_calibrated


@dataclass(frozen=True, kw_only=True, slots=True)
class Twn:
    """Settings of TWN. Weights up to `threshold` · mean|w| become 0; the paper has 0.7, and 0.75 in its first form."""

    observer: ClassVar[str] = "mean_abs"
    threshold: float = 0.7

    def __post_init__(self) -> None:
        if not 0 <= self.threshold < 1:
            raise SettingError(f"the threshold of TWN lies in [0, 1), so that some weights stay, got {self.threshold}")

    def build(self, scheme: Scheme, *, role: Role = "activation") -> "TwnQuantizer":
        """Raises UnsupportedError for activations, and for other schemes than 2 signed, symmetric, uniform bits."""
        if role != "weight":
            raise UnsupportedError("TWN quantizes weights only: use `pact` or `lsq` for activations")
        if scheme.bits != 2:
            raise UnsupportedError(
                f"TWN's weights are ternary and take 2 bits, not {scheme.bits}: use `lsq` for others"
            )
        if not (scheme.signed and scheme.symmetric):
            raise UnsupportedError("TWN's weights are -α, 0 and α: use a signed, symmetric scheme")
        if scheme.grid != Uniform() or scheme.rounding != HalfEven():
            raise UnsupportedError("TWN compares with a threshold: use a uniform grid with rounding to nearest")
        return TwnQuantizer(replace(scheme, narrow=True, adapt_sign=False), threshold=self.threshold)


class Ternary(torch.autograd.Function):
    """α · sign(w) where |w| > threshold, else 0; the gradient to w is the one to ŵ."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, threshold: Tensor, alpha: Tensor) -> Tensor:
        """Shapes: w any; threshold and alpha broadcast against it."""
        del ctx
        return torch.where(w > threshold, alpha, torch.where(w < -threshold, -alpha, w - w))  # NaN stays NaN

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """See the class."""
        del ctx
        return grad, None, None


@final
class TwnQuantizer(nn.Module):
    """ŵ = α sign(w) where |w| > Δ, else 0, with Δ = 0.7 mean|w| and α the mean of the |w| above Δ (equations 3 to 6).

    Mean and Δ are those of the weights that share a scale: of a layer, in the paper. Nothing is learned but w, straight
    through. α follows w in every forward pass; `grid` tells the last one. Shapes: w as calibrated.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, scheme: Scheme, *, threshold: float) -> None:
        super().__init__()
        self.scheme, self.threshold = scheme, threshold
        self.register_buffer("scale", torch.empty(0))
        self.register_buffer("zero_point", torch.empty(0, dtype=torch.int32))
        loads_into_fresh(self)

    def calibrate(self, qparams: QParams) -> None:
        """Start at half of the observed range, mean|w| with the observer `mean_abs`, until the first forward pass."""
        self.scale = half_of_range(qparams)
        self.zero_point = torch.zeros_like(self.scale, dtype=torch.int32)

    def forward(self, w: Tensor) -> Tensor:
        """Shapes: w as calibrated; raises CalibrationError before calibration."""
        require_calibrated(self.scale)
        threshold, scale = self._threshold_and_scale(w.detach())
        self.scale.copy_(scale)
        granularity = self.scheme.granularity
        threshold, alpha = (expand(value, w.dim(), granularity) for value in (threshold, scale))
        y: Tensor = Ternary.apply(w, threshold, alpha)  # type: ignore[no-untyped-call]
        return y

    def _threshold_and_scale(self, w: Tensor) -> tuple[Tensor, Tensor]:
        size = blocks(w.abs(), self.scheme.granularity)
        threshold = self.threshold * size.mean(1)
        kept = size > threshold[:, None]
        scale = (size * kept).sum(1) / kept.sum(1).clamp(min=1)
        scale = scale.clamp(min=SMALLEST_SCALE)
        if isinstance(self.scheme.scale, PowerOfTwo):
            scale = torch.exp2(scale.log2().round())
        shape = tuple(w.shape)
        return from_blocks(threshold, shape, self.scheme.granularity), from_blocks(
            scale, shape, self.scheme.granularity
        )

    def grid(self) -> QParams:
        """α of the last weights that passed, for the levels -1, 0 and 1."""
        require_calibrated(self.scale)
        return QParams(self.scale.detach(), self.zero_point, self.scheme)

    def extra_repr(self) -> str:
        """The scheme in words."""
        return f"{self.scheme}, zero up to {self.threshold} mean|w|"
