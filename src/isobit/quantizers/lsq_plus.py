"""LSQ+: scale and offset are learned (Bhalgat et al., CVPR Workshops 2020, arXiv:2004.09576)."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from isobit.core.errors import UnsupportedError
from isobit.core.fake_quantize import fake_quantize
from isobit.core.grid import Uniform
from isobit.core.qparams import SMALLEST_SCALE, QParams
from isobit.core.rounding import HalfEven
from isobit.core.scheme import PowerOfTwo, Scheme
from isobit.quantizers.protocol import (
    Role,
    loads_into_fresh,
    require_calibrated,
    scale_gradient,
    settled,
    straight_through,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class LsqPlus:
    """Settings of LSQ+. `damp` switches the gradient scale g of LSQ on, for the scale and the offset alike.

    An asymmetric scheme learns an offset (the paper's configurations 3 and 4), a symmetric one does not (1 and 2).
    Activations start at the range of least square error; weights, in the paper, at the mean ± 3 standard
    deviations, which is the observer `mean_std`.
    """

    weight_observer: ClassVar[str] = "mean_std"
    observer: ClassVar[str] = "mse"
    stochastic_rounding: ClassVar[bool] = True
    damp: bool = True

    def build(self, scheme: Scheme, *, role: Role = "activation") -> "LsqPlusQuantizer":
        """Weights are symmetric: a target that takes a zero point takes 0.

        Raises UnsupportedError for unsigned asymmetric weights, 1 signed bit, a non-uniform grid, or another rounding.
        """
        if role == "weight" and not scheme.symmetric:
            if not scheme.signed:
                raise UnsupportedError("LSQ+ learns offsets of activations alone. Use a signed scheme for weights")
            scheme = replace(scheme, symmetric=True)
        if scheme.signed and scheme.bits == 1:
            raise UnsupportedError("LSQ+ is not defined for 1 signed bit: its highest level would be 0. Use 2 bits")
        if scheme.grid != Uniform() or scheme.rounding != HalfEven():
            raise UnsupportedError(
                "LSQ+ learns scale and offset of a uniform grid with rounding to nearest. Use such a scheme"
            )
        return LsqPlusQuantizer(scheme, role=role, damp=self.damp)


def zero_point_of_offset(offset: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
    """z = clip(round(-β / s)), a float that holds an integer.

    Its gradients are those of -β' / s, where β' = -z s is the offset that the integer stands for: 1 / -s to β,
    straight-through the rounding, and β' / s² to s.
    """
    z = (-offset / scale).detach().round().clamp(low, high)
    return straight_through(z, -straight_through(-z * scale, offset) / scale)


@final
class LsqPlusQuantizer(nn.Module):
    """Learns a scale s and, where the scheme is asymmetric, an offset β; each per tensor, channel or group.

    Equation 3 with the offset on the grid: x̂ = s · round(clip((x - β') / s, n, p)) + β', where β' = -z s and
    z = clip(round(-β / s), n, p) is the integer that an engine adds, so that β' lies within half a step of β and
    x̂ = s (clip(round(x / s) + z, n, p) - z). With v = (x - β') / s, the gradient to s (equation 4) is
    round(v) - v inside, n below, p above; the gradient to β (equation 5), 0 inside and 1 outside. Both are
    multiplied by g = 1 / sqrt(N p) of LSQ, N the number of weights (of features per sample, for an activation)
    that share the scale.
    """

    scale: nn.Parameter
    beta: nn.Parameter | None
    signed: Tensor

    def __init__(self, scheme: Scheme, *, role: Role, damp: bool) -> None:
        super().__init__()
        self.scheme, self.role, self.damp = scheme, role, damp
        self.scale = nn.Parameter(torch.empty(0))
        self.register_parameter("beta", None if scheme.symmetric else nn.Parameter(torch.empty(0)))
        self.register_buffer("signed", torch.tensor(scheme.signed))
        loads_into_fresh(self)

    def calibrate(self, qparams: QParams) -> None:
        """Start at the observed scale, and at the offset β = -z s of the observed zero point."""
        self.scheme = settled(self.scheme, signed=qparams.scheme.signed)
        self.scale.data = qparams.scale.detach().clone()
        if self.beta is not None:
            self.beta.data = -qparams.zero_point * self.scale.data
        self.signed = torch.tensor(qparams.scheme.signed, device=qparams.scale.device)

    def positive_scale(self) -> Tensor:
        """|s|, away from zero; for a power-of-two scheme 2^round(log2 |s|), straight-through to s."""
        scale = self.scale.abs().clamp(min=SMALLEST_SCALE)
        if isinstance(self.scheme.scale, PowerOfTwo):
            return straight_through(torch.exp2(scale.detach().log2().round()), scale)
        return scale

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """Shapes: x as calibrated, with any batch size; raises CalibrationError before calibration."""
        require_calibrated(self.scale)
        scale = self.positive_scale()
        beta: Tensor | None = self.beta
        if self.damp and torch.is_grad_enabled():
            features = x.shape if self.role == "weight" else x.shape[1:]
            shared = max(math.prod(features) // scale.numel(), 1)
            g = 1.0 / math.sqrt(shared * self.scheme.quant_max)
            scale = scale_gradient(scale, g)
            beta = None if beta is None else scale_gradient(beta, g)
        return fake_quantize(x, scale, self._zero_point(scale, beta), self.scheme, noise=noise)

    def grid(self) -> QParams:
        """The learned scale, and the zero point that stands for the learned offset."""
        require_calibrated(self.scale)
        scale = self.positive_scale().detach()
        return QParams(scale, self._zero_point(scale, self.beta).detach().to(torch.int32), self.scheme)

    def extra_repr(self) -> str:
        """The scheme in words."""
        return f"{self.scheme}, learned"

    def _zero_point(self, scale: Tensor, beta: Tensor | None) -> Tensor:
        if beta is None:
            return torch.zeros_like(scale, dtype=torch.int32)
        return zero_point_of_offset(beta, scale, self.scheme.quant_min, self.scheme.quant_max)
