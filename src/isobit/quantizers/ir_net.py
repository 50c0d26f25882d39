"""IR-Net: balanced binary weights and a gradient that sharpens (Qin et al., CVPR 2020, arXiv:1909.10788)."""

from dataclasses import dataclass, replace
from math import log10
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from isobit.core.errors import SettingError, UnsupportedError
from isobit.core.granularity import Granularity, blocks, expand, from_blocks
from isobit.core.grid import MidRise, Uniform
from isobit.core.qparams import SMALLEST_SCALE, QParams
from isobit.core.rounding import HalfEven
from isobit.core.scheme import PowerOfTwo, Scheme
from isobit.quantizers.protocol import Role, loads_into_fresh, require_calibrated


@dataclass(frozen=True, kw_only=True, slots=True)
class IrNet:
    """Settings of IR-Net: the sharpness t of the gradient grows from `softest` to `sharpest`.

    The paper and its VGG-Small have 0.1 and 10; the code behind the published ResNet-20 with binary activations
    starts at 0.001.
    """

    observer: ClassVar[str] = "min_max"
    softest: float = 0.1
    sharpest: float = 10.0

    def __post_init__(self) -> None:
        if not 0 < self.softest <= self.sharpest:
            raise SettingError(f"IR-Net needs 0 < softest <= sharpest, got {self.softest} and {self.sharpest}")

    def build(self, scheme: Scheme, *, role: Role = "activation") -> "IrNetQuantizer":
        """Raises UnsupportedError for more than 1 bit, and for unsigned or asymmetric schemes."""
        if scheme.bits != 1:
            raise UnsupportedError(f"IR-Net has 1 bit, not {scheme.bits}: use `dorefa` or `lsq` for more")
        if not (scheme.signed and scheme.symmetric):
            raise UnsupportedError("IR-Net's levels are -1 and 1: use a signed, symmetric scheme")
        if scheme.grid not in (Uniform(), MidRise()) or scheme.rounding != HalfEven():
            raise UnsupportedError("IR-Net takes the sign: use a uniform or mid-rise grid with rounding to nearest")
        binary = replace(scheme, grid=MidRise(), scale=PowerOfTwo(), adapt_sign=False)
        return IrNetQuantizer(binary, role=role, settings=self)


class ErrorDecaySign(torch.autograd.Function):
    """s · sign(x) with sign(0) = 1; the gradient is that of s · k tanh(t x), k = max(1 / t, 1) (section 3.3)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, t: Tensor) -> Tensor:
        """Shapes: x any; scale broadcasts against it; t ()."""
        ctx.save_for_backward(x, scale, t)
        return torch.where(x >= 0, scale, torch.where(x < 0, -scale, x))  # NaN stays NaN

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """See the class."""
        x, scale, t = ctx.saved_tensors
        slope = (1 / t).clamp(min=1) * t * (1 - torch.tanh(t * x).square())
        return grad * scale * slope.to(grad.dtype), None, None


def standardise(w: Tensor, granularity: Granularity) -> Tensor:
    """Weights with mean 0 and deviation 1 among those that share a scale (section 3.2). Differentiable."""

    def spread(values: Tensor) -> Tensor:
        return expand(from_blocks(values, tuple(w.shape), granularity), w.dim(), granularity)

    centred = w - spread(blocks(w, granularity).mean(1))
    squares = blocks(centred.square(), granularity)
    variance = squares.sum(1) / max(squares.shape[1] - 1, 1)
    return centred / spread(variance.clamp(min=SMALLEST_SCALE).sqrt())


@final
class IrNetQuantizer(nn.Module):
    """Weights 2^s sign(ŵ) with ŵ = (w - mean) / deviation and s = round(log2 mean|ŵ|) (section 3.2, Libra-PB).

    Mean and deviation are those of the weights that share a scale: of a filter, in the paper. The gradient flows
    through ŵ, not through s, which follows w in every forward pass; `grid` tells the last one. Activations are sign(x).
    The gradient of the sign is g · k t (1 - tanh²(t x)) with k = max(1 / t, 1), the error decay estimator
    (section 3.3): nearly the identity at first, nearly the sign's own at the end. `advance` sets
    t = softest · (sharpest / softest)^progress. Nothing is learned but w. Shapes: w as calibrated, activations any.
    """

    scale: Tensor
    zero_point: Tensor
    t: Tensor

    def __init__(self, scheme: Scheme, *, role: Role, settings: IrNet) -> None:
        super().__init__()
        self.scheme, self.role, self.settings = scheme, role, settings
        self.register_buffer("scale", torch.empty(0))
        self.register_buffer("zero_point", torch.empty(0, dtype=torch.int32))
        self.register_buffer("t", torch.tensor(settings.softest))
        loads_into_fresh(self)

    def calibrate(self, qparams: QParams) -> None:
        """Start at a scale of 1: the data decide nothing for activations, and for weights in each forward pass."""
        self.scale = torch.ones_like(qparams.scale)
        self.zero_point = torch.zeros_like(qparams.scale, dtype=torch.int32)

    def advance(self, progress: float) -> None:
        """Set t for a training that is done to the fraction `progress`, 0 to 1 (section 3.3)."""
        lowest, highest = log10(self.settings.softest), log10(self.settings.sharpest)
        self.t.fill_(10 ** (lowest + (highest - lowest) * progress))

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: x as calibrated; raises CalibrationError before calibration."""
        require_calibrated(self.scale)
        values, scale = (x, x.new_ones(())) if self.role == "activation" else self._balanced(x)
        y: Tensor = ErrorDecaySign.apply(values, scale, self.t)  # type: ignore[no-untyped-call]
        return y

    def _balanced(self, w: Tensor) -> tuple[Tensor, Tensor]:
        granularity = self.scheme.granularity
        standard = standardise(w, granularity)
        size = blocks(standard.detach().abs(), granularity).mean(1).clamp(min=SMALLEST_SCALE)
        scale = from_blocks(torch.exp2(size.log2().round()), tuple(w.shape), granularity)
        self.scale.copy_(scale)
        return standard, expand(scale, w.dim(), granularity)

    def grid(self) -> QParams:
        """2^s of the last weights that passed, or 1, for the levels -1 and 1."""
        require_calibrated(self.scale)
        return QParams(self.scale.detach(), self.zero_point, self.scheme)

    def extra_repr(self) -> str:
        """The scheme in words."""
        return f"{self.scheme}, t from {self.settings.softest} to {self.settings.sharpest}"
