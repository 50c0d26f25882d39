"""APoT: additive powers of two with a learned clipping threshold (Li et al., ICLR 2020, arXiv:1909.13144)."""

from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from isobit.core.errors import SettingError, UnsupportedError
from isobit.core.fake_quantize import fake_quantize
from isobit.core.grid import POWERS, AdditivePowersOfTwo, Uniform
from isobit.core.qparams import SMALLEST_SCALE, QParams
from isobit.core.rounding import HalfEven
from isobit.core.scheme import PowerOfTwo, Scheme
from isobit.quantizers.protocol import Role, loads_into_fresh, require_calibrated


@dataclass(frozen=True, kw_only=True, slots=True)
class Apot:
    """Settings of APoT. The thresholds start at `weight_alpha` (in standard deviations) and `activation_alpha`.

    An `activation_alpha` of None starts at the observed range, and so do weights without `normalise_weights`.
    `clip_weight_gradient` stops the gradient of clipped weights, as the authors' ImageNet code does; their CIFAR-10
    code, which gave the published CIFAR-10 numbers, passes it.
    """

    observer: ClassVar[str] = "mean_std"
    weight_decay: ClassVar[float | None] = 1e-4
    normalise_weights: bool = True
    weight_alpha: float = 3.0
    activation_alpha: float | None = 8.0
    clip_weight_gradient: bool = False

    def __post_init__(self) -> None:
        if not (self.weight_alpha > 0 and (self.activation_alpha is None or self.activation_alpha > 0)):
            raise SettingError("the thresholds weight_alpha and activation_alpha of APoT have to be above 0")

    def build(self, scheme: Scheme, *, role: Role = "activation") -> "ApotQuantizer":
        """Raises UnsupportedError where the levels don't exist for the bits, and for zero points or 2^n scales."""
        if not scheme.symmetric:
            raise UnsupportedError("APoT has no zero point: use a symmetric scheme, or `lsq_plus`")
        if isinstance(scheme.scale, PowerOfTwo):
            raise UnsupportedError(
                "APoT learns any scale, not powers of two: use `tqt`, or a scheme with a float scale"
            )
        if scheme.grid not in (Uniform(), AdditivePowersOfTwo()) or scheme.rounding != HalfEven():
            raise UnsupportedError("APoT has levels of its own: use a uniform grid with rounding to nearest")
        if role == "weight" and not scheme.signed:
            raise UnsupportedError("APoT's weights have both signs: use a signed scheme")
        widest = max(POWERS) + int(scheme.signed and not scheme.adapt_sign)
        if not 1 + int(scheme.signed) <= scheme.bits <= widest:
            raise UnsupportedError(
                f"APoT has {1 + int(scheme.signed)} to {widest} bits for {scheme}: use `lsq` for others"
            )
        return ApotQuantizer(replace(scheme, grid=AdditivePowersOfTwo(), narrow=False), role=role, settings=self)


def normalise(w: Tensor) -> Tensor:
    """Weight normalisation: (w - μ) / σ over the layer, where μ and σ carry no gradient."""
    mean, deviation = w.detach().mean(), w.detach().std().clamp(min=SMALLEST_SCALE)
    return (w - mean) / deviation


@final
class ApotQuantizer(nn.Module):
    """Learns the clipping threshold α of a tensor, or one per channel or group, on levels of additive powers of two.

    x̂ = α Π(clip(x / α, -1, 1)), where Π takes the nearest level (equation 5; the highest is 1), from 0 for unsigned
    values. Weights are normalised first: (w - μ) / σ with the mean and deviation of the layer. What is computed with
    is then no approximation of w: a batch norm behind the layer has to take up σ, and training the shift.
    The gradient to α, that of the reparameterised clipping function, is Π(x / α) - x / α inside and sign(x) where
    clipped. That to x is straight-through inside; clipped activations get none, clipped weights get it too.

    The declared scale is α / the highest level, for the levels as integers; 2-bit weights are {-1, 0, 1}.
    α starts at 3 for weights, in standard deviations, and at 8 for activations (the authors' CIFAR-10 code).
    Shapes: x as calibrated, with any batch size.
    """

    alpha: nn.Parameter
    zero_point: Tensor
    signed: Tensor

    def __init__(self, scheme: Scheme, *, role: Role, settings: Apot) -> None:
        super().__init__()
        self.scheme, self.role, self.settings = scheme, role, settings
        self.alpha = nn.Parameter(torch.empty(0))
        self.register_buffer("zero_point", torch.empty(0, dtype=torch.int32))
        self.register_buffer("signed", torch.tensor(scheme.signed))
        loads_into_fresh(self)

    def calibrate(self, qparams: QParams) -> None:
        """Take the settled sign, and start α at its constant or at the observed range."""
        self.scheme = replace(self.scheme, signed=qparams.scheme.signed, adapt_sign=False)
        self.signed = torch.tensor(self.scheme.signed, device=qparams.scale.device)
        start = self.settings.activation_alpha
        if self.role == "weight":
            start = self.settings.weight_alpha if self.settings.normalise_weights else None
        observed = qparams.range()[1].detach().clone()
        self.alpha.data = observed if start is None else torch.full_like(observed, start)
        self.zero_point = torch.zeros_like(observed, dtype=torch.int32)

    def positive_scale(self) -> Tensor:
        """|α| / the highest level, away from zero. Differentiable in α."""
        return (self.alpha.abs() / self.scheme.quant_max).clamp(min=SMALLEST_SCALE)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: x as calibrated, with any batch size; raises CalibrationError before calibration."""
        require_calibrated(self.alpha)
        if self.role == "activation":
            return fake_quantize(x, self.positive_scale(), self.zero_point, self.scheme)
        w = normalise(x) if self.settings.normalise_weights else x
        if self.settings.clip_weight_gradient:
            return fake_quantize(w, self.positive_scale(), self.zero_point, self.scheme)
        on_grid = fake_quantize(w.detach(), self.positive_scale(), self.zero_point, self.scheme)
        return on_grid + (w - w.detach())  # adds 0: the gradient passes the clipping

    def grid(self) -> QParams:
        """The learned threshold over the highest level."""
        require_calibrated(self.alpha)
        return QParams(self.positive_scale().detach(), self.zero_point, self.scheme)

    def extra_repr(self) -> str:
        """The scheme in words."""
        return f"{self.scheme}, learned"
