"""DSQ: steps whose gradient is that of a tanh (Gong et al., ICCV 2019, arXiv:1908.05033)."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from isobit.core.errors import SettingError, UnsupportedError
from isobit.core.granularity import expand
from isobit.core.grid import MidRise, Uniform
from isobit.core.qparams import SMALLEST_SCALE, QParams
from isobit.core.rounding import HalfEven
from isobit.core.scheme import PowerOfTwo, Scheme
from isobit.quantizers.protocol import Role, loads_into_fresh, require_calibrated, rounded, settled, straight_through

ALPHA_RANGE = 0.01, 0.99
"""The α with which the gradient is computed: at 0 it would be that of a hard step, at 1 it divides by 0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Dsq:
    """Settings of DSQ: α at the start, whether it is learned, and the weight of its penalty.

    The paper lets α fall while the network trains, so that the soft steps turn into hard ones; MQBench
    (arXiv:2111.03759) fixes it at 0.4. The paper gives no weight for the penalty: 1e-4 is a weight decay.
    """

    observer: ClassVar[str] = "mean_std"
    stochastic_rounding: ClassVar[bool] = True
    alpha: float = 0.2
    learn_alpha: bool = True
    alpha_penalty: float = 1e-4

    def __post_init__(self) -> None:
        low, high = ALPHA_RANGE
        if not low <= self.alpha <= high:
            raise SettingError(f"alpha has to be between {low} and {high}, got {self.alpha!r}")
        if not self.alpha_penalty >= 0:
            raise SettingError(f"alpha_penalty has to be at least 0, got {self.alpha_penalty!r}")

    def build(self, scheme: Scheme, *, role: Role = "activation") -> "DsqQuantizer":
        """Raises UnsupportedError for a grid without equal steps, or another rounding."""
        del role
        if scheme.grid not in {Uniform(), MidRise()} or scheme.rounding != HalfEven():
            raise UnsupportedError("DSQ has equal steps, rounded to nearest. Use a uniform or a mid-rise grid")
        return DsqQuantizer(scheme, self)


class SoftRound(torch.autograd.Function):
    """The level nearest to u, with the gradient of one tanh between each level and the next.

    Forward: round(u); with levels at k + 1/2, floor(u) + 1/2. Backward: let m be the middle between the two
    levels about u, φ(u) = S tanh(κ (u - m)), S = 1 / (1 - α), κ = ln(2 / α - 1), which is k Δ of the paper.
    With sign(φ) straight-through, the gradients are

    - to u: φ' / 2 with φ' = S κ (1 - tanh²(κ (u - m)))
    - to the zero point z: φ' / 2 - 1, since the level is q(u + z) - z
    - to α: (S² tanh(κ (u - m)) - 2 S (u - m) (1 - tanh²(κ (u - m))) / (α (2 - α))) / 2
    """

    @staticmethod
    def forward(ctx: Any, u: Tensor, zero_point: Tensor, alpha: Tensor, mid_rise: bool, noise: Tensor | None) -> Tensor:
        """Shapes: u any, noise alike; zero_point broadcasts against it; alpha ()."""
        ctx.save_for_backward(u, alpha)
        ctx.mid_rise, ctx.shape = mid_rise, zero_point.shape
        return rounded(u, noise, mid_rise=mid_rise)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """See the class."""
        u, alpha = ctx.saved_tensors
        w = u - (u + 0.5).floor() if ctx.mid_rise else u - u.floor() - 0.5
        stretch, sharpness = 1 / (1 - alpha), (2 / alpha - 1).log()
        tanh = (sharpness * w).tanh()
        bell = stretch * (1 - tanh.square())
        slope = sharpness * bell / 2
        grad_zero_point = grad_alpha = None
        if ctx.needs_input_grad[1]:
            grad_zero_point = (grad * (slope - 1)).sum_to_size(ctx.shape)
        if ctx.needs_input_grad[2]:
            change = stretch.square() * tanh - 2 * w * bell / (alpha * (2 - alpha))
            grad_alpha = (grad * change / 2).sum()
        return grad * slope, grad_zero_point, grad_alpha, None, None


@final
class DsqQuantizer(nn.Module):
    """Learns the range [l, u], per tensor, channel or group, and one α for the tensor.

    With Δ = (u - l) / (2^b - 1) and the interval P_i between the levels l + i Δ and l + (i + 1) Δ, of middle m_i,
    the paper's soft quantizer (section 3.2) is Q_S(x) = l + Δ (i + (φ(x) + 1) / 2) in P_i, l below, u above,
    where φ(x) = s tanh(k (x - m_i)), s = 1 / (1 - α), k = ln(2 / α - 1) / Δ. The forward pass puts sign(φ) in
    place of φ, which is rounding to nearest; the backward pass takes sign(φ) straight-through (`SoftRound`), so
    that x, l, u and α get the gradients of Q_S.

    A symmetric scheme ties l to u: l = u quant_min / quant_max (`upper` alone is learned). An asymmetric one
    learns `lower` and `upper`, and computes with the l on the grid, (quant_min - z) Δ, z = round(quant_min - l / Δ),
    straight-through to l. One signed symmetric bit is {-u, u}: the grid becomes `MidRise`.
    """

    lower: nn.Parameter | None
    upper: nn.Parameter
    alpha: Tensor
    signed: Tensor

    def __init__(self, scheme: Scheme, settings: Dsq) -> None:
        super().__init__()
        self.scheme = scheme if scheme.adapt_sign else _without_zero_at_one_bit(scheme)
        self.alpha_penalty = settings.alpha_penalty
        self.upper = nn.Parameter(torch.empty(0))
        self.register_parameter("lower", None if scheme.symmetric else nn.Parameter(torch.empty(0)))
        if settings.learn_alpha:
            self.alpha = nn.Parameter(torch.tensor(settings.alpha))
        else:
            self.register_buffer("alpha", torch.tensor(settings.alpha))
        self.register_buffer("signed", torch.tensor(scheme.signed))
        loads_into_fresh(self)

    def calibrate(self, qparams: QParams) -> None:
        """Start at the ends of the observed range."""
        self.settle(signed=qparams.scheme.signed)
        scale = qparams.scale.detach()
        self.upper.data = (self.scheme.quant_max - qparams.zero_point) * scale
        if self.lower is not None:
            self.lower.data = (self.scheme.quant_min - qparams.zero_point) * scale
        self.signed = torch.tensor(qparams.scheme.signed, device=scale.device)

    def settle(self, *, signed: bool) -> None:
        """Take the sign that calibration saw."""
        self.scheme = _without_zero_at_one_bit(settled(self.scheme, signed=signed))

    def scale_and_zero_point(self) -> tuple[Tensor, Tensor]:
        """The scale and the zero point, as floats that carry gradients to l and u."""
        low, high = self.scheme.quant_min, self.scheme.quant_max
        scale = self.upper / high if self.lower is None else (self.upper - self.lower) / (high - low)
        scale = scale.abs().clamp(min=SMALLEST_SCALE)
        if isinstance(self.scheme.scale, PowerOfTwo):
            scale = straight_through(torch.exp2(scale.detach().log2().round()), scale)
        if self.lower is None:
            return scale, torch.zeros_like(scale)
        z = (low - self.lower / scale).detach().round().clamp(low, high)
        return scale, straight_through(z, low - straight_through((low - z) * scale, self.lower) / scale)

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """Shapes: x as calibrated, with any batch size; raises CalibrationError before calibration."""
        require_calibrated(self.upper)
        scheme = self.scheme
        mid_rise = isinstance(scheme.grid, MidRise)
        scale, z = (expand(t.to(x.dtype), x.dim(), scheme.granularity) for t in self.scale_and_zero_point())
        step = 2 * scale if mid_rise else scale
        low, high = ((level - z) / (2 if mid_rise else 1) for level in (scheme.quant_min, scheme.quant_max))
        alpha = straight_through(self.alpha.clamp(*ALPHA_RANGE), self.alpha).to(x.dtype)
        u = (x / step).clamp(low, high)
        level = SoftRound.apply(u, z, alpha, mid_rise, noise)  # type: ignore[no-untyped-call]
        return level * step  # type: ignore[no-any-return]

    def penalty(self) -> Tensor:
        """λ α², what pulls the steps from soft to hard."""
        return self.alpha_penalty * self.alpha.square()

    def grid(self) -> QParams:
        """The scale and zero point of the learned range."""
        require_calibrated(self.upper)
        scale, zero_point = self.scale_and_zero_point()
        return QParams(scale.detach(), zero_point.detach().to(torch.int32), self.scheme)

    def extra_repr(self) -> str:
        """The scheme in words."""
        return f"{self.scheme}, learned"


def _without_zero_at_one_bit(scheme: Scheme) -> Scheme:
    binary = scheme.signed and scheme.symmetric and scheme.bits == 1
    return replace(scheme, grid=MidRise()) if binary else scheme
