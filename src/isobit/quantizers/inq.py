"""INQ: weights become powers of two part by part, the largest first (Zhou et al., ICLR 2017, arXiv:1702.03044)."""

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from isobit.core.errors import SettingError, UnsupportedError
from isobit.core.fake_quantize import nearest_level
from isobit.core.granularity import expand
from isobit.core.grid import PowersOfTwo, Uniform
from isobit.core.qparams import QParams
from isobit.core.rounding import HalfEven
from isobit.core.scheme import FloatScale, PowerOfTwo, Scheme
from isobit.quantizers.protocol import Role, loads_into_fresh, require_calibrated


@dataclass(frozen=True, kw_only=True, slots=True)
class Inq:
    """Settings of INQ: from the progress `begins[i]` on, the part `fractions[i]` of a layer's weights is frozen.

    The fractions are the paper's for 5 bits, with equal stages of training between them. A stage begins with the first
    training step at or after its progress; the last one, at 1, is that of inference.
    """

    observer: ClassVar[str] = "min_max"
    fractions: tuple[float, ...] = (0.5, 0.75, 0.875, 1.0)
    begins: tuple[float, ...] = (0.0, 1 / 3, 2 / 3, 1.0)

    def __post_init__(self) -> None:
        if not self.fractions or len(self.fractions) != len(self.begins):
            raise SettingError("INQ needs as many `begins` as `fractions`, at least one")
        if not (self.fractions[0] > 0 and self.fractions[-1] == 1 and _grow(self.fractions)):
            raise SettingError(f"the fractions of INQ grow, from above 0 to 1, got {self.fractions}")
        if not (self.begins[0] >= 0 and self.begins[-1] <= 1 and _grow(self.begins)):
            raise SettingError(f"the stages of INQ begin one after the other, from 0 to 1, got {self.begins}")

    def build(self, scheme: Scheme, *, role: Role = "activation") -> "InqQuantizer":
        """Raises UnsupportedError for activations, other widths than 2 to 6 bits, and for a zero point."""
        if role != "weight":
            raise UnsupportedError("INQ quantizes weights only: use `lsq` or `pact` for activations")
        if not 2 <= scheme.bits <= 6:
            raise UnsupportedError(f"INQ's powers of two take 2 to 6 bits, not {scheme.bits}: use `lsq` for others")
        if not (scheme.signed and scheme.symmetric):
            raise UnsupportedError("INQ's levels lie on both sides of 0: use a signed, symmetric scheme")
        if scheme.grid not in (Uniform(), PowersOfTwo()) or scheme.rounding != HalfEven():
            raise UnsupportedError("INQ has levels of its own: use a uniform or logarithmic grid, rounding to nearest")
        observed = replace(scheme, grid=PowersOfTwo(), scale=FloatScale(), narrow=False, adapt_sign=False)
        return InqQuantizer(observed, settings=self)


def _grow(values: tuple[float, ...]) -> bool:
    return all(a < b for a, b in pairwise(values))


@final
class InqQuantizer(nn.Module):
    """Levels 0 and ±2^n2 … ±2^n1 with n1 = floor(log2(4 max|w| / 3)), n2 = n1 + 1 - 2^(b-1) / 2 (section 2.1).

    With α < β neighbours among 0, 2^n2, …, 2^n1: ŵ = β sign(w) where (α + β) / 2 <= |w| < 3 β / 2, else 0
    (equation 4); a weight that training moved beyond 3/2 · 2^n1 takes 2^n1. When a stage begins, the largest of the
    layer's free weights are frozen at ŵ, until the stage's fraction is; they get no gradient (section 2.2). The others
    are float in training, with the gradient of ŵ, and quantized in eval mode. Nothing is learned but w.

    n1 is calibrated: one for a layer in the paper, one for each scale of the scheme here. A declared grid of b bits
    has powers below 2^n2, which stay unused. Shapes: w as given to `start`.
    """

    scale: Tensor
    zero_point: Tensor
    frozen: Tensor
    value: Tensor

    def __init__(self, scheme: Scheme, *, settings: Inq) -> None:
        super().__init__()
        self.scheme, self.settings = scheme, settings
        self.register_buffer("scale", torch.empty(0))
        self.register_buffer("zero_point", torch.empty(0, dtype=torch.int32))
        self.register_buffer("frozen", torch.empty(0, dtype=torch.bool))
        self.register_buffer("value", torch.empty(0))
        self.advance(0.0)
        loads_into_fresh(self)

    def calibrate(self, qparams: QParams) -> None:
        """Find n1 from the observed range; the scale is the declared grid's smallest power, 2^n1 / quant_max."""
        low, high = (bound.detach().double().abs() for bound in qparams.range())
        n1 = (4 * torch.maximum(low, high) / 3).log2().floor()
        self.scale = (torch.exp2(n1) / self.scheme.quant_max).to(qparams.scale.dtype)
        self.zero_point = torch.zeros_like(self.scale, dtype=torch.int32)

    def start(self, weight: Tensor) -> None:
        """Create the mask, with nothing frozen. Shapes: weight any. Raises CalibrationError before calibration."""
        require_calibrated(self.scale)
        self.frozen = torch.zeros_like(weight, dtype=torch.bool)
        self.value = torch.zeros_like(weight)

    def advance(self, progress: float) -> None:
        """Let the next training step begin the stage of a training that is done to the fraction `progress`."""
        begun = [f for f, begin in zip(self.settings.fractions, self.settings.begins, strict=True) if begin <= progress]
        self._fraction, self._due = max(begun, default=0.0), True

    def forward(self, w: Tensor) -> Tensor:
        """Shapes: w as given to `start`; raises CalibrationError before that."""
        require_calibrated(self.value)
        if self.training and self._due:
            self._freeze(w.detach())
            self._due = False
        free = w if self.training else self._quantize(w)
        return torch.where(self.frozen, self.value.to(w.dtype), free)

    def grid(self) -> QParams:
        """Powers of two, the scale the smallest."""
        require_calibrated(self.value)
        return QParams(self.scale.detach(), self.zero_point, replace(self.scheme, scale=PowerOfTwo()))

    def _freeze(self, w: Tensor) -> None:
        """Freeze until round(fraction · n) of the n weights are; what is frozen stays, so twice is as once."""
        largest = torch.where(self.frozen, torch.inf, w.abs()).flatten()
        chosen = largest.topk(round(self._fraction * w.numel())).indices
        frozen = self.frozen.flatten().index_fill(0, chosen, True).reshape(w.shape)
        self.value.copy_(torch.where(frozen & ~self.frozen, self._quantize(w), self.value))
        self.frozen.copy_(frozen)

    def _quantize(self, w: Tensor) -> Tensor:
        """Equation 4."""
        used = 1 << (self.scheme.bits - 2)
        powers = (0, *self.scheme.levels[-used:])
        scale = expand(self.scale.to(w.dtype), w.dim(), self.scheme.granularity)
        return w.sign() * nearest_level((w / scale).abs(), powers, ties_up=True) * scale

    def extra_repr(self) -> str:
        """The scheme in words."""
        return f"{self.scheme}, frozen in parts of {', '.join(f'{f:g}' for f in self.settings.fractions)}"
