"""SLB: each weight is a distribution over its levels, searched by gradient (Yang et al. 2020, arXiv:2009.08695)."""

from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from isobit.core.errors import SettingError, UnsupportedError
from isobit.core.granularity import expand
from isobit.core.grid import MidRise, Uniform
from isobit.core.qparams import QParams
from isobit.core.rounding import HalfEven
from isobit.core.scheme import PowerOfTwo, Scheme
from isobit.quantizers.protocol import Role, loads_into_fresh, require_calibrated

SHARPEST: dict[int, float] = {1: 1.03**250, 2: 1.04**250, 3: 1.05**250, 4: 1.05**250}
"""T at the end for each number of bits: the authors' factors per epoch, from 40 to 90 % of 500 epochs."""

WIDTH = 0.5
"""Deviation of the distribution that stands for a pretrained weight, in steps: its mean is the weight within 0.03."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Slb:
    """Settings of SLB. T is `softest` until the progress `begin`, grows to `sharpest` at `freeze`; then V is chosen.

    `sharpest` of None is `softest` times the authors' growth for the number of bits. With `pretrained` the search
    starts at the weights, and the levels are times the calibrated scale. Without, as in the paper, it starts at random
    and the levels are linspace(-1, 1, 2^b): the weights are thrown away, and a batch norm behind the layer has to give
    its output a scale. Either way no gradient reaches the float weights, so a batch norm is kept, or merged before the
    training (`bn_fold` -1 or 0). The logits' learning rate is `learning_rate_scale` times that of weights (None: the
    training's own factor): a short search has to move them further in each step.
    """

    observer: ClassVar[str] = "mse"
    softest: float = 1.0
    sharpest: float | None = None
    begin: float = 0.4
    freeze: float = 0.9
    pretrained: bool = True
    learning_rate_scale: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.softest <= (self.softest if self.sharpest is None else self.sharpest):
            raise SettingError(f"SLB needs 0 < softest <= sharpest, got {self.softest} and {self.sharpest}")
        if not 0 <= self.begin < self.freeze <= 1:
            raise SettingError(f"SLB needs 0 <= begin < freeze <= 1, got {self.begin} and {self.freeze}")

    def build(self, scheme: Scheme, *, role: Role = "activation") -> "SlbQuantizer":
        """Raises UnsupportedError for activations, more than 4 bits, and levels that are not even and symmetric."""
        if role != "weight":
            raise UnsupportedError("SLB searches for weights: use `pact` or `dorefa` for activations")
        if scheme.bits not in SHARPEST:
            raise UnsupportedError(f"SLB keeps 2^bits numbers per weight, so {scheme.bits} bits are many: use `lsq`")
        if not (scheme.signed and scheme.symmetric):
            raise UnsupportedError("SLB's levels lie on both sides of 0: use a signed, symmetric scheme")
        if scheme.narrow:
            raise UnsupportedError("SLB has 2^bits levels, none to drop: use a scheme without `narrow`, or `lsq`")
        if scheme.grid not in (Uniform(), MidRise()) or scheme.rounding != HalfEven():
            raise UnsupportedError("SLB's levels are even: use a uniform or mid-rise grid with rounding to nearest")
        if isinstance(scheme.scale, PowerOfTwo) and not self.pretrained and scheme.bits > 1:
            raise UnsupportedError("the steps of linspace(-1, 1, 2^b) are no power of two: use `pretrained`, or 1 bit")
        sharpest = SHARPEST[scheme.bits] * self.softest if self.sharpest is None else self.sharpest
        even = replace(scheme, grid=MidRise(), adapt_sign=False)
        return SlbQuantizer(even, settings=replace(self, sharpest=sharpest))


@final
class SlbQuantizer(nn.Module):
    """Training: W_c = Σ_i P_i V_i with P = softmax(T A); in eval mode and once frozen: W_q = V_k with k = argmax A.

    (Section 3.) V = s (1 - 2^b, …, -1, 1, …, 2^b - 1) are the levels. The gradient is exact, none is passed straight
    through: ∂W_c / ∂A_i = T P_i (V_i - W_c). `advance` sets T, an inverse temperature, the buffer `sharpness`:

    T = softest · (sharpest / softest)^((progress - begin) / (freeze - begin)), the exponent clipped to [0, 1].

    Only the logits A (the weight's shape, 2^b) are learned. They start as He-normal (fan out) with s = 1 / (2^b - 1),
    or from pretrained weights, s calibrated: A_i = -(w - V_i)² / (2 σ² T), σ half a step and w clipped, so that W_c is
    close to w and W_q its nearest level. Memory and work are 2^b times a weight's. Shapes: w as given to `start`.
    """

    differs_in_eval: ClassVar[bool] = True
    """Training computes with expectations, evaluation with the weights that are chosen."""

    logits: nn.Parameter
    scale: Tensor
    zero_point: Tensor
    sharpness: Tensor
    frozen: Tensor

    def __init__(self, scheme: Scheme, *, settings: Slb) -> None:
        super().__init__()
        self.scheme, self.settings = scheme, settings
        self.learning_rate_scale = settings.learning_rate_scale
        self.logits = nn.Parameter(torch.empty(0))
        self.register_buffer("scale", torch.empty(0))
        self.register_buffer("zero_point", torch.empty(0, dtype=torch.int32))
        self.register_buffer("sharpness", torch.tensor(settings.softest))
        self.register_buffer("frozen", torch.tensor(False))
        loads_into_fresh(self)

    def calibrate(self, qparams: QParams) -> None:
        """Take the scale for pretrained weights; the levels end at -1 and 1 without."""
        own = torch.full_like(qparams.scale, 1 / self.scheme.quant_max)
        self.scale = qparams.scale.detach().clone() if self.settings.pretrained else own
        self.zero_point = torch.zeros_like(self.scale, dtype=torch.int32)

    @torch.no_grad()
    def start(self, weight: Tensor) -> None:
        """Create the logits. Shapes: weight any. Raises CalibrationError before calibration."""
        require_calibrated(self.scale)
        levels = self._levels(weight)
        if self.settings.pretrained:
            scale = expand(self.scale, weight.dim(), self.scheme.granularity)
            steps = (weight / scale).clamp(levels[0], levels[-1])[..., None] / 2 - levels / 2
            self.logits.data = -steps.square() / (2 * WIDTH**2 * self.settings.softest)
        else:
            self.logits.data = weight.new_empty(*weight.shape, len(levels))
            nn.init.kaiming_normal_(self.logits, mode="fan_out", nonlinearity="relu")

    def advance(self, progress: float) -> None:
        """Set T for a training that is done to the fraction `progress`, 0 to 1; from `freeze` on A learns no more."""
        settings = self.settings
        assert settings.sharpest is not None
        done = min(max((progress - settings.begin) / (settings.freeze - settings.begin), 0.0), 1.0)
        self.sharpness.fill_(settings.softest * (settings.sharpest / settings.softest) ** done)
        self.frozen.fill_(progress >= settings.freeze)
        self.logits.requires_grad_(progress < settings.freeze)
        if progress >= settings.freeze:
            self.logits.grad = None  # what momentum still holds would move A

    def forward(self, w: Tensor) -> Tensor:
        """Shapes: w as given to `start`, of which nothing else counts; raises CalibrationError before that."""
        require_calibrated(self.logits)
        levels = self._levels(self.logits)
        chosen = levels[self.logits.argmax(-1)]
        if self.training:
            expected = torch.softmax(self.sharpness * self.logits, -1) @ levels
            chosen = torch.where(self.frozen, chosen, expected)
        scale = expand(self.scale, chosen.dim(), self.scheme.granularity)
        return (chosen * scale).to(w.dtype)

    def grid(self) -> QParams:
        """The levels V: odd integers, the scale is half a step."""
        require_calibrated(self.logits)
        return QParams(self.scale.detach(), self.zero_point, self.scheme)

    def _levels(self, like: Tensor) -> Tensor:
        return torch.tensor(self.scheme.levels, dtype=like.dtype, device=like.device)

    def extra_repr(self) -> str:
        """The scheme in words."""
        return f"{self.scheme}, searched with T from {self.settings.softest:g} to {self.settings.sharpest:g}"
