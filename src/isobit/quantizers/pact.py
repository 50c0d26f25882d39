"""PACT: the clipping level of activations is learned (Choi et al. 2018, arXiv:1805.06085)."""

from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from isobit.core.errors import SettingError, UnsupportedError
from isobit.core.fake_quantize import FakeQuantize
from isobit.core.granularity import expand
from isobit.core.grid import Uniform
from isobit.core.qparams import SMALLEST_SCALE, QParams, scale_and_zero_point
from isobit.core.rounding import HalfEven, Stochastic
from isobit.core.scheme import Scheme
from isobit.quantizers.protocol import Role, loads_into_fresh, require_calibrated


@dataclass(frozen=True, kw_only=True, slots=True)
class Pact:
    """Settings of PACT. `alpha` is the clipping level to start from, None for the end of the calibrated range.

    Published starts are 8 or 10 where training begins without calibration, and 6 in MQBench. `decay` is λ of the
    penalty λ α²: 0.0002 for the paper's ResNet on CIFAR-10, as its weight decay. The penalty takes the place of the
    weight decay of α, which is 0. `learning_rate_scale` multiplies the learning rate of α; None leaves it to the
    training's settings.
    """

    observer: ClassVar[str] = "min_max"
    stochastic_rounding: ClassVar[bool] = True
    weight_decay: ClassVar[float | None] = 0.0
    alpha: float | None = None
    decay: float = 2e-4
    learning_rate_scale: float | None = None

    def __post_init__(self) -> None:
        if self.alpha is not None and not self.alpha > 0:
            raise SettingError(f"alpha, a clipping level, has to be above 0, got {self.alpha!r}")
        if not self.decay >= 0:
            raise SettingError(f"decay, the weight of the penalty, has to be at least 0, got {self.decay!r}")

    def build(self, scheme: Scheme, *, role: Role = "activation") -> "PactQuantizer":
        """Raises UnsupportedError for 1 signed bit, a non-uniform grid, another rounding, and unsigned weights."""
        if scheme.grid != Uniform() or scheme.rounding != HalfEven():
            raise UnsupportedError(
                "PACT learns the range of a uniform grid with rounding to nearest: use such a scheme"
            )
        if scheme.signed and scheme.symmetric and scheme.bits == 1:
            raise UnsupportedError("PACT needs a level above 0, which 1 signed bit does not have: use 2 bits")
        if role == "weight" and scheme.symmetric and not scheme.signed:
            raise UnsupportedError("weights have both signs, and PACT clips them on both sides: use a signed scheme")
        return PactQuantizer(scheme, settings=self)


class ClipAndRound(torch.autograd.Function):
    """x clipped to [low, high] and rounded to the grid, which ends where the interval does.

    Gradients (equation 3, for both ends): to x where it is inside, to `high` where x is above, to `low` where x is
    below; each x has exactly one of the three, and rounding is straight-through.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        low: Tensor,
        high: Tensor,
        scale: Tensor,
        zero_point: Tensor,
        quant_min: int,
        quant_max: int,
        noise: Tensor | None,
    ) -> Tensor:
        """Shapes: x any, noise alike; the others broadcast against it."""
        rounding = HalfEven() if noise is None else Stochastic()
        y = FakeQuantize.forward(ctx, x, scale, zero_point, quant_min, quant_max, rounding, noise)
        ctx.shapes = low.shape, high.shape
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """See the class."""
        x, scale, zero_point, _ = ctx.saved_tensors
        v = x / scale + zero_point.to(x.dtype)
        below, above = v <= ctx.low, v >= ctx.high
        grad_x = grad * ~(below | above) if ctx.needs_input_grad[0] else None
        grad_low = (grad * below).sum_to_size(ctx.shapes[0]) if ctx.needs_input_grad[1] else None
        grad_high = (grad * above).sum_to_size(ctx.shapes[1]) if ctx.needs_input_grad[2] else None
        return grad_x, grad_low, grad_high, None, None, None, None, None


@final
class PactQuantizer(nn.Module):
    """Equations 1 and 2: x̂ = round(y (2^b - 1) / α) α / (2^b - 1) with y = clip(x, 0, α); α is learned.

    The gradient to α (equation 3) is 1 where x >= α, else 0; the one to x is 1 inside, else 0. `penalty` is the
    paper's λ α². α starts at the end of the calibrated range, or where the settings say; it is one value, or one per
    channel or group, of the shape of the scale.

    A signed symmetric scheme, as weights have it, clips on both sides: its grid has the scale α / quant_max, and
    reaches down to quant_min / quant_max · α. An asymmetric one learns its lower end β too, as in MQBench; its zero
    point is round(quant_min - β / scale). Absolute values keep α > 0 > β.
    """

    weight_decay: ClassVar[float | None] = Pact.weight_decay
    alpha: nn.Parameter
    beta: nn.Parameter | None
    signed: Tensor

    def __init__(self, scheme: Scheme, *, settings: Pact) -> None:
        super().__init__()
        self.scheme, self.start, self.decay = scheme, settings.alpha, settings.decay
        self.learning_rate_scale = settings.learning_rate_scale
        self.alpha = nn.Parameter(torch.empty(0))
        self.register_parameter("beta", None if scheme.symmetric else nn.Parameter(torch.empty(0)))
        self.register_buffer("signed", torch.tensor(scheme.signed))
        loads_into_fresh(self)

    def calibrate(self, qparams: QParams) -> None:
        """Take the settled sign and, unless the settings give it, the range."""
        self.scheme = qparams.scheme
        self.signed = torch.tensor(qparams.scheme.signed, device=qparams.scale.device)
        low, high = (bound.detach().clone() for bound in qparams.range())
        if self.start is not None:
            low, high = low.clamp(max=0).sign() * self.start, torch.full_like(high, self.start)
        self.alpha.data = high
        if self.beta is not None:
            self.beta.data = low

    def interval(self) -> tuple[Tensor, Tensor]:
        """Both ends of the clipped range; differentiable in α and β."""
        high = self.alpha.abs()
        if self.beta is not None:
            return -self.beta.abs(), high
        return high * (self.scheme.quant_min / self.scheme.quant_max), high

    def penalty(self) -> Tensor:
        """λ α², summed over all clipping levels; what the loss gains."""
        learned = [self.alpha] if self.beta is None else [self.alpha, self.beta]
        return self.decay * torch.stack([level.square().sum() for level in learned]).sum()

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """Shapes: x as calibrated, with any batch size; raises CalibrationError before calibration."""
        require_calibrated(self.alpha)
        low, high = self.interval()
        scale, zero_point = self._scale_and_zero_point()
        granularity = self.scheme.granularity
        low, high, scale = (expand(t.to(x.dtype), x.dim(), granularity) for t in (low, high, scale))
        zero_point = expand(zero_point, x.dim(), granularity)
        y: Tensor = ClipAndRound.apply(  # type: ignore[no-untyped-call]
            x, low, high, scale, zero_point, self.scheme.quant_min, self.scheme.quant_max, noise
        )
        return y

    def grid(self) -> QParams:
        """A scale of α / quant_max, or of (α - β) / (quant_max - quant_min) and the zero point."""
        require_calibrated(self.alpha)
        return QParams(*self._scale_and_zero_point(), self.scheme)

    def _scale_and_zero_point(self) -> tuple[Tensor, Tensor]:
        low, high = (bound.detach() for bound in self.interval())
        if self.beta is None:
            low = torch.zeros_like(high)  # a signed grid reaches one step further down than its scale says
        return scale_and_zero_point(low, high.clamp(min=SMALLEST_SCALE * self.scheme.quant_max), self.scheme)

    def extra_repr(self) -> str:
        """The scheme in words."""
        return f"{self.scheme}, learned clipping level"
