"""LSQ: the step size is learned (Esser et al., ICLR 2020, arXiv:1902.08153)."""

import math
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from isobit.core.errors import UnsupportedError
from isobit.core.fake_quantize import fake_quantize
from isobit.core.grid import Uniform
from isobit.core.qparams import SMALLEST_SCALE, QParams
from isobit.core.rounding import HalfEven
from isobit.core.scheme import PowerOfTwo, Scheme
from isobit.quantizers.protocol import Role, loads_into_fresh, power_of_two, require_calibrated, scale_gradient


@dataclass(frozen=True, kw_only=True, slots=True)
class Lsq:
    """Settings of LSQ. `damp` switches the gradient scale g of section 2.2 on."""

    observer: ClassVar[str] = "mean_abs"
    stochastic_rounding: ClassVar[bool] = True
    damp: bool = True

    def build(self, scheme: Scheme, *, role: Role = "activation") -> "LsqQuantizer":
        """Raises UnsupportedError for 1 signed bit (Q_P = 0), a non-uniform grid, or another rounding."""
        if scheme.signed and scheme.bits == 1:
            raise UnsupportedError("LSQ is not defined for 1 signed bit: its highest level would be 0. Use 2 bits")
        if scheme.grid != Uniform() or scheme.rounding != HalfEven():
            raise UnsupportedError("LSQ learns the step of a uniform grid with rounding to nearest")
        return LsqQuantizer(scheme, role=role, damp=self.damp)


@final
class LsqQuantizer(nn.Module):
    """Learns one scale for a tensor, one per channel or one per group.

    Equations 1 and 2: x̂ = s · round(clip(x / s, -Q_N, Q_P)). The gradient to s (equation 3) is
    round(x / s) - x / s inside, -Q_N below, Q_P above, times g = 1 / sqrt(N Q_P) (section 2.2), N the number of
    weights (of features per sample, for an activation) that share the scale. An asymmetric scheme keeps its
    calibrated zero point.
    """

    scale: nn.Parameter
    zero_point: Tensor
    signed: Tensor

    def __init__(self, scheme: Scheme, *, role: Role, damp: bool) -> None:
        super().__init__()
        self.scheme, self.role, self.damp = scheme, role, damp
        self.scale = nn.Parameter(torch.empty(0))
        self.register_buffer("zero_point", torch.empty(0, dtype=torch.int32))
        self.register_buffer("signed", torch.tensor(scheme.signed))
        loads_into_fresh(self)

    def calibrate(self, qparams: QParams) -> None:
        """Start at the observed scale: 2 mean|x| / sqrt(Q_P) with the observer `mean_abs` (section 2.1)."""
        self.scheme = qparams.scheme
        self.scale.data = qparams.scale.detach().clone()
        self.zero_point = qparams.zero_point.detach().clone()
        self.signed = torch.tensor(qparams.scheme.signed, device=qparams.scale.device)

    def positive_scale(self) -> Tensor:
        """|s|, away from zero; for a power-of-two scheme 2^round(log2 |s|). Differentiable in s."""
        scale = self.scale.abs().clamp(min=SMALLEST_SCALE)
        return power_of_two(scale) if isinstance(self.scheme.scale, PowerOfTwo) else scale

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """Shapes: x as calibrated, with any batch size; raises CalibrationError before calibration."""
        require_calibrated(self.scale)
        scale = self.positive_scale()
        if self.damp and torch.is_grad_enabled():
            shared = x.numel() // scale.numel()
            count = shared // x.shape[0] if self.role == "activation" else shared
            scale = scale_gradient(scale, 1.0 / math.sqrt(max(count, 1) * self.scheme.quant_max))
        return fake_quantize(x, scale, self.zero_point, self.scheme, noise=noise)

    def grid(self) -> QParams:
        """The learned scale, and the zero point."""
        require_calibrated(self.scale)
        return QParams(self.positive_scale().detach(), self.zero_point, self.scheme)

    def extra_repr(self) -> str:
        """The scheme in words."""
        return f"{self.scheme}, learned"
