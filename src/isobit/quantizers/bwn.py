"""BWN: binary weights with the mean magnitude as scale (Rastegari et al., ECCV 2016, arXiv:1603.05279)."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, final

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from isobit.core.errors import SettingError, UnsupportedError
from isobit.core.granularity import blocks, expand, from_blocks
from isobit.core.grid import MidRise, Uniform
from isobit.core.qparams import SMALLEST_SCALE, QParams
from isobit.core.rounding import HalfEven
from isobit.core.scheme import PowerOfTwo, Scheme
from isobit.quantizers.protocol import Role, half_of_range, loads_into_fresh, require_calibrated

WeightGradient = Literal["straight_through", "xnor"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Bwn:
    """Settings of BWN. `gradient` is "straight_through" (g), or "xnor" for g (1/n + α 1[|w| <= 1]) of section 3.1.

    The paper's own is "xnor". It is smaller by the factor α, a few hundredths, and made for Adam.
    """

    observer: ClassVar[str] = "mean_abs"
    gradient: WeightGradient = "straight_through"

    def __post_init__(self) -> None:
        if self.gradient not in ("straight_through", "xnor"):
            raise SettingError(f"the gradient of BWN is 'straight_through' or 'xnor', not {self.gradient!r}")

    def build(self, scheme: Scheme, *, role: Role = "activation") -> "BwnQuantizer":
        """Raises UnsupportedError for activations, more than 1 bit, unsigned, asymmetric or stochastic schemes."""
        if role != "weight":
            raise UnsupportedError("BWN quantizes weights only: for binary activations use `bi_real` or `ir_net`")
        if scheme.bits != 1:
            raise UnsupportedError(f"BWN has 1 bit, not {scheme.bits}: use `dorefa` or `lsq` for more")
        if not (scheme.signed and scheme.symmetric):
            raise UnsupportedError("BWN's weights are -α and α: use a signed, symmetric scheme")
        if scheme.grid not in (Uniform(), MidRise()) or scheme.rounding != HalfEven():
            raise UnsupportedError("BWN takes the sign: use a uniform or mid-rise grid with rounding to nearest")
        return BwnQuantizer(replace(scheme, grid=MidRise(), adapt_sign=False), gradient=self.gradient)


class ScaledSign(torch.autograd.Function):
    """ŵ = α sign(w) with sign(0) = 1 and the gradient factor that is given; none to α."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, alpha: Tensor, factor: Tensor) -> Tensor:
        """Shapes: w any; alpha and factor broadcast against it."""
        ctx.save_for_backward(factor)
        return torch.where(w >= 0, alpha, -alpha)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """See the class."""
        (factor,) = ctx.saved_tensors
        return grad * factor, None, None


def mean_magnitude(w: Tensor, scheme: Scheme) -> Tensor:
    """Equation 6: α = ‖w‖₁ / n over the n weights that share it, or the nearest 2^k. Shape: that of the scale."""
    rows = blocks(w.detach().abs(), scheme.granularity).mean(1).clamp(min=SMALLEST_SCALE)
    if isinstance(scheme.scale, PowerOfTwo):
        rows = torch.exp2(rows.log2().round())
    return from_blocks(rows, tuple(w.shape), scheme.granularity)


@final
class BwnQuantizer(nn.Module):
    """ŵ = α sign(w) with α = ‖w‖₁ / n (equations 4 and 6), n weights sharing one α: a filter, in the paper.

    Nothing is learned but w: its gradient is straight-through, or g (1/n + α 1[|w| <= 1]) (section 3.1), the paper's
    form. α follows w in every forward pass; `grid` tells the last one. Shapes: w as calibrated.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, scheme: Scheme, *, gradient: WeightGradient) -> None:
        super().__init__()
        self.scheme, self.gradient = scheme, gradient
        self.register_buffer("scale", torch.empty(0))
        self.register_buffer("zero_point", torch.empty(0, dtype=torch.int32))
        loads_into_fresh(self)

    def calibrate(self, qparams: QParams) -> None:
        """Start at half of the observed range: mean|w| with the observer `mean_abs`."""
        self.scale = half_of_range(qparams)
        self.zero_point = torch.zeros_like(self.scale, dtype=torch.int32)

    def forward(self, w: Tensor) -> Tensor:
        """Shapes: w as calibrated; raises CalibrationError before calibration."""
        require_calibrated(self.scale)
        scale = mean_magnitude(w, self.scheme)
        self.scale.copy_(scale)
        alpha = expand(scale, w.dim(), self.scheme.granularity)
        factor = torch.ones_like(alpha)
        if self.gradient == "xnor":
            factor = scale.numel() / w.numel() + alpha * (w.detach().abs() <= 1)
        y: Tensor = ScaledSign.apply(w, alpha, factor)  # type: ignore[no-untyped-call]
        return y

    def grid(self) -> QParams:
        """α of the last weights that passed, for the levels -1 and 1."""
        require_calibrated(self.scale)
        return QParams(self.scale.detach(), self.zero_point, self.scheme)

    def extra_repr(self) -> str:
        """The scheme in words."""
        return f"{self.scheme}, {self.gradient}"
