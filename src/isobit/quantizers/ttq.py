"""TTQ: ternary weights with two learned scales (Zhu et al., ICLR 2017, arXiv:1612.01064)."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from isobit.core.errors import SettingError, UnsupportedError
from isobit.core.granularity import PerTensor
from isobit.core.grid import Codebook, Uniform
from isobit.core.qparams import SMALLEST_SCALE, QParams
from isobit.core.rounding import HalfEven
from isobit.core.scheme import PowerOfTwo, Scheme
from isobit.quantizers.protocol import Role, half_of_range, loads_into_fresh, require_calibrated


@dataclass(frozen=True, kw_only=True, slots=True)
class Ttq:
    """Settings of TTQ. Weights up to `threshold` · max|w| become 0 (equation 9)."""

    observer: ClassVar[str] = "mean_abs"
    threshold: float = 0.05

    def __post_init__(self) -> None:
        if not 0 <= self.threshold < 1:
            raise SettingError(f"the threshold of TTQ lies in [0, 1), so that some weights stay, got {self.threshold}")

    def build(self, scheme: Scheme, *, role: Role = "activation") -> "TtqQuantizer":
        """Raises UnsupportedError for activations, and for other schemes than 2 signed bits of a whole tensor."""
        if role != "weight":
            raise UnsupportedError("TTQ quantizes weights only: use `pact` or `lsq` for activations")
        if scheme.bits != 2:
            raise UnsupportedError(
                f"TTQ's weights are ternary and take 2 bits, not {scheme.bits}: use `lsq` for others"
            )
        if not (scheme.signed and scheme.symmetric) or scheme.granularity != PerTensor():
            raise UnsupportedError("TTQ has two scales for a layer: use a signed, symmetric, per-tensor scheme")
        if isinstance(scheme.scale, PowerOfTwo):
            raise UnsupportedError("TTQ learns any two scales, not powers of two: use `twn`")
        if scheme.grid not in (Uniform(), Codebook()) or scheme.rounding != HalfEven():
            raise UnsupportedError("TTQ compares with a threshold: use a uniform grid with rounding to nearest")
        ternary = replace(scheme, grid=Uniform(), narrow=True, adapt_sign=False)
        return TtqQuantizer(ternary, threshold=self.threshold)


class TwoScales(torch.autograd.Function):
    """ŵ = W_p where w > Δ, -W_n where w < -Δ, else 0 (equation 6), with the gradients g of ŵ

    - to W_p: Σ g over w > Δ, and to W_n: -Σ g over w < -Δ (equation 7)
    - to w: W_p g, W_n g and g in the three parts (equation 8)
    """

    @staticmethod
    def forward(ctx: Any, w: Tensor, positive: Tensor, negative: Tensor, threshold: Tensor) -> Tensor:
        """Shapes: w any; the others ()."""
        ctx.save_for_backward(w, positive, negative, threshold)
        return torch.where(w > threshold, positive, torch.where(w < -threshold, -negative, w - w))  # NaN stays NaN

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """See the class."""
        w, positive, negative, threshold = ctx.saved_tensors
        above, below = w > threshold, w < -threshold
        one = torch.ones_like(positive)
        to_w = grad * torch.where(above, positive, torch.where(below, negative, one))
        return to_w, (grad * above).sum(), -(grad * below).sum(), None


@final
class TtqQuantizer(nn.Module):
    """Weights W_p, 0 and -W_n with Δ = 0.05 max|w| (equations 6 and 9); both scales are learned.

    Their gradients are those of `TwoScales`; the one to W_n has the sign that -W_n brings, as in the published code.
    Both start at half of the observed range, mean|w| with the observer `mean_abs`: the paper leaves it open.
    The declared grid is a codebook of three values; observers see the nearest uniform scheme. Shapes: w any.
    """

    positive: nn.Parameter
    negative: nn.Parameter

    def __init__(self, scheme: Scheme, *, threshold: float) -> None:
        super().__init__()
        self.scheme, self.threshold = scheme, threshold
        self.positive = nn.Parameter(torch.empty(0))
        self.negative = nn.Parameter(torch.empty(0))
        loads_into_fresh(self)

    def calibrate(self, qparams: QParams) -> None:
        """Start both scales at half of the observed range."""
        start = half_of_range(qparams)
        self.positive.data, self.negative.data = start.clone(), start.clone()

    def forward(self, w: Tensor) -> Tensor:
        """Shapes: w any; raises CalibrationError before calibration."""
        require_calibrated(self.positive)
        positive, negative = (scale.to(w.dtype) for scale in self._scales())
        threshold = w.detach().abs().amax() * self.threshold
        y: Tensor = TwoScales.apply(w, positive, negative, threshold)  # type: ignore[no-untyped-call]
        return y

    def grid(self) -> QParams:
        """The codebook (-W_n, 0, W_p), at scale 1."""
        require_calibrated(self.positive)
        positive, negative = (scale.detach() for scale in self._scales())
        codebook = torch.stack([-negative, torch.zeros_like(positive), positive])
        zero_point = torch.zeros_like(positive, dtype=torch.int32)
        scheme = replace(self.scheme, grid=Codebook(), narrow=False)
        return QParams(torch.ones_like(positive), zero_point, scheme, codebook)

    def _scales(self) -> tuple[Tensor, Tensor]:
        return self.positive.abs().clamp(min=SMALLEST_SCALE), self.negative.abs().clamp(min=SMALLEST_SCALE)

    def extra_repr(self) -> str:
        """The scheme in words."""
        return f"{self.scheme}, two learned scales, zero up to {self.threshold} max|w|"
