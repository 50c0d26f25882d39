"""Logarithmic: 0 and powers of two, the largest of them learned (Miyashita et al. 2016, arXiv:1603.01025)."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from isobit.core.errors import UnsupportedError
from isobit.core.fake_quantize import fake_quantize
from isobit.core.grid import PowersOfTwo, Uniform
from isobit.core.qparams import SMALLEST_SCALE, QParams
from isobit.core.rounding import HalfEven
from isobit.core.scheme import PowerOfTwo, Scheme
from isobit.quantizers.protocol import (
    Role,
    loads_into_fresh,
    power_of_two,
    require_calibrated,
    scale_gradient,
    settled,
)

WIDEST: dict[Role, int] = {"weight": 6, "activation": 4}
"""The most bits whose levels fit an integer: a weight's reach 2^30, an unsigned activation's 2^14."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Logarithmic:
    """Settings of the logarithmic quantizer. `damp` switches the gradient scale g on."""

    observer: ClassVar[str] = "mean_abs"
    stochastic_rounding: ClassVar[bool] = True
    damp: bool = True

    def build(self, scheme: Scheme, *, role: Role = "activation") -> "LogarithmicQuantizer":
        """Raises UnsupportedError for zero points, other grids or rounding, and bits that have no powers of two."""
        if not scheme.symmetric:
            raise UnsupportedError("powers of two lie around 0: use a symmetric scheme, or `lsq_plus`")
        if scheme.grid not in (Uniform(), PowersOfTwo()) or scheme.rounding != HalfEven():
            raise UnsupportedError("Logarithmic has levels of its own: use a uniform grid with rounding to nearest")
        if role == "weight" and not scheme.signed:
            raise UnsupportedError("logarithmic weights have both signs: use a signed scheme")
        adapt_sign = scheme.adapt_sign and role == "activation"
        if not 1 + int(scheme.signed) <= scheme.bits <= WIDEST[role]:
            raise UnsupportedError(
                f"a logarithmic {role} has {1 + int(scheme.signed)} to {WIDEST[role]} bits, not {scheme.bits}, since "
                "the largest of more powers of two fits no integer: use `lsq` for more, and 2 bits for a sign"
            )
        scheme = replace(scheme, grid=PowersOfTwo(), narrow=False, adapt_sign=adapt_sign)
        return LogarithmicQuantizer(scheme, role=role, damp=self.damp)


@final
class LogarithmicQuantizer(nn.Module):
    """x̂ = s · (the nearest of 0, ±1, ±2, ±4, …, ±Q) to x / s, with s = α / Q; learns α, the largest magnitude.

    The levels are the paper's, 2^round(log2|x|) clipped to a range of exponents, with the nearest by value and not by
    exponent, as the grid declares it: the threshold above 2^k is 1.5 · 2^k, and values below s / 2 are 0. The paper's
    range 2^FSR is α, which need not be a power of two unless the scheme says so.

    The gradient to α is LSQ's (arXiv:1902.08153, equation 3): (x̂ - x) / α inside, ±1 where clipped, times
    g = 1 / sqrt(N), N the number of weights (of features per sample, for an activation) that share α. LSQ's other
    factor, the number of levels, belongs to s: α is Q = 2^k times as large, and its gradient never above 1. That to x
    is straight-through inside. α starts at the end of the observed range, and is one for a tensor, channel or group.
    Shapes: x as calibrated, with any batch size.
    """

    alpha: nn.Parameter
    zero_point: Tensor
    signed: Tensor

    def __init__(self, scheme: Scheme, *, role: Role, damp: bool) -> None:
        super().__init__()
        self.scheme, self.role, self.damp = scheme, role, damp
        self.alpha = nn.Parameter(torch.empty(0))
        self.register_buffer("zero_point", torch.empty(0, dtype=torch.int32))
        self.register_buffer("signed", torch.tensor(scheme.signed))
        loads_into_fresh(self)

    def calibrate(self, qparams: QParams) -> None:
        """Take the settled sign and the highest value that does not clip."""
        self.scheme = settled(self.scheme, signed=qparams.scheme.signed)
        self.signed = torch.tensor(self.scheme.signed, device=qparams.scale.device)
        self.alpha.data = qparams.range()[1].detach().clone()
        self.zero_point = torch.zeros_like(self.alpha.data, dtype=torch.int32)

    def positive_scale(self) -> Tensor:
        """|α| / Q, away from zero; the nearest 2^k for a power-of-two scheme. Differentiable in α."""
        scale = (self.alpha.abs() / self.scheme.quant_max).clamp(min=SMALLEST_SCALE)
        return power_of_two(scale) if isinstance(self.scheme.scale, PowerOfTwo) else scale

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """Shapes: x as calibrated, with any batch size; raises CalibrationError before calibration."""
        require_calibrated(self.alpha)
        scale = self.positive_scale()
        if self.damp and torch.is_grad_enabled():
            features = math.prod(x.shape[1:]) if self.role == "activation" else x.numel()
            scale = scale_gradient(scale, 1.0 / math.sqrt(max(features // scale.numel(), 1)))
        return fake_quantize(x, scale, self.zero_point, self.scheme, noise=noise)

    def grid(self) -> QParams:
        """The learned α over the highest level."""
        require_calibrated(self.alpha)
        return QParams(self.positive_scale().detach(), self.zero_point, self.scheme)

    def extra_repr(self) -> str:
        """The scheme in words."""
        return f"{self.scheme}, learned"
