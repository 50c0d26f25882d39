"""EWGS: gradients scaled element by element by the rounding error (Lee et al., CVPR 2021, arXiv:2104.00903)."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from isobit.core.errors import CalibrationError, SettingError, UnsupportedError
from isobit.core.granularity import expand
from isobit.core.grid import MidRise, Uniform
from isobit.core.qparams import SMALLEST_SCALE, QParams
from isobit.core.rounding import HalfEven, uniform_noise
from isobit.core.scheme import PowerOfTwo, Scheme
from isobit.quantizers.protocol import Role, loads_into_fresh, require_calibrated, rounded, settled, straight_through


@dataclass(frozen=True, kw_only=True, slots=True)
class Ewgs:
    """Settings of EWGS: `delta` is δ at the start; 0 is the straight-through estimator.

    `mid_rise` says whether weights have the paper's levels, which have no zero; where it is None, they do below
    8 bits, while 8 bits keep the integers that engines multiply. The quantizer learns at a hundredth of the
    network's learning rate, without weight decay, as in the authors' code.
    """

    observer: ClassVar[str] = "mean_std"
    stochastic_rounding: ClassVar[bool] = True
    learning_rate_scale: ClassVar[float] = 0.01
    weight_decay: ClassVar[float | None] = 0.0
    delta: float = 1e-3
    mid_rise: bool | None = None

    def __post_init__(self) -> None:
        if not self.delta >= 0:
            raise SettingError(f"delta has to be at least 0, got {self.delta!r}")

    def build(self, scheme: Scheme, *, role: Role = "activation") -> "EwgsQuantizer":
        """Weights are symmetric: a target that takes a zero point takes 0.

        Raises UnsupportedError for unsigned weights, a grid that EWGS does not have, or another rounding.
        """
        if scheme.grid not in {Uniform(), MidRise()} or scheme.rounding != HalfEven():
            raise UnsupportedError("EWGS has equal steps, rounded to nearest. Use a uniform or a mid-rise grid")
        if role == "activation":
            if scheme.grid != Uniform():
                raise UnsupportedError("EWGS has activations with a level at 0. Use a uniform grid")
            if scheme.bits == 1 and scheme.signed and not scheme.adapt_sign:
                raise UnsupportedError("EWGS has no activations of 1 signed bit: its highest level would be 0. Use 2")
            return EwgsQuantizer(scheme, role=role, delta=self.delta)
        if not scheme.signed:
            raise UnsupportedError("EWGS has weights on both sides of 0. Use a signed scheme for weights")
        scheme = replace(scheme, symmetric=True)
        mid_rise = scheme.bits < 8 if self.mid_rise is None else self.mid_rise
        if mid_rise or scheme.grid == MidRise():
            return EwgsQuantizer(
                replace(scheme, grid=MidRise(), narrow=False, adapt_sign=False), role=role, delta=self.delta
            )
        if scheme.bits == 1:
            raise UnsupportedError("1 bit on the integer grid has no level above 0. Leave mid_rise at None or True")
        return EwgsQuantizer(scheme, role=role, delta=self.delta)


class ScaledRound(torch.autograd.Function):
    """The level nearest to u; the gradient g passes as g (1 + δ sign(g) (u - level) / steps) (section 3).

    In the paper's units, where the range is 1 wide, x_n - x_q = (u - level) / steps. Levels are the integers, or
    k + 1/2. The level is q(u + z) - z for a zero point z, which gets the same gradient less g. It can be
    differentiated twice: a Hessian sees the scaling as a constant, and δ needs one.
    """

    @staticmethod
    def forward(
        ctx: Any, u: Tensor, zero_point: Tensor, delta: Tensor, steps: int, mid_rise: bool, noise: Tensor | None
    ) -> Tensor:
        """Shapes: u any, noise alike; zero_point broadcasts against it; delta ()."""
        level = rounded(u, noise, mid_rise=mid_rise)
        ctx.save_for_backward((u - level) * (delta / steps))
        ctx.shape = zero_point.shape
        return level

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """See the class."""
        (error,) = ctx.saved_tensors
        scaling = grad.sign() * error
        grad_zero_point = (grad * scaling).sum_to_size(ctx.shape) if ctx.needs_input_grad[1] else None
        return grad * (1 + scaling), grad_zero_point, None, None, None, None


def hessian_diagonal(gradient: Tensor, quantized: Tensor, *, probes: int = 50, seed: int = 0) -> Tensor:
    """Hutchinson's estimate of the diagonal of the Hessian, of the shape of `quantized`: the mean of v ⊙ H v.

    Its sum estimates the trace Tr(H) = E[vᵀ H v]. v is ±1 with equal chances, drawn `probes` times. `gradient` is
    that of the loss to `quantized`, made with `create_graph=True`.

    >>> x = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> (gradient,) = torch.autograd.grad((x**3).sum(), x, create_graph=True)
    >>> hessian_diagonal(gradient, x, probes=4).tolist()
    [6.0, 12.0]
    """
    total = torch.zeros_like(quantized)
    for step in range(probes):
        v = torch.where(uniform_noise(quantized, seed=seed, step=step) < 0.5, -1.0, 1.0).to(quantized.dtype)
        (product,) = torch.autograd.grad(gradient, quantized, v, retain_graph=True)
        total += v * product
    return total / probes


@final
class EwgsQuantizer(nn.Module):
    """Learns the range [l, u] and, for weights, an output scale; each per tensor, channel or group.

    x_n = clip((x - l) / (u - l), 0, 1) and x_q = round(x_n steps) / steps (section 3.1), with steps =
    2^b - 1. Weights are o (2 x_q - 1), with `output_scale` o, which the paper multiplies onto the layer's output;
    it starts at u. Activations are l + (u - l) x_q, since an engine stores their levels with one scale. The
    gradient to x_n is g (1 + δ sign(g) (x_n - x_q)) for the gradient g to x_q (`ScaledRound`); all else is exact.

    Weights on integers, and symmetric activations, tie l to u: l = u quant_min / quant_max, and weights are
    o x_q / quant_max. Asymmetric activations compute with the l on the grid, (quant_min - z) (u - l) / steps,
    z = round(quant_min - l steps / (u - l)), straight-through to l.
    """

    lower: nn.Parameter | None
    upper: nn.Parameter
    output_scale: nn.Parameter | None
    delta: Tensor
    signed: Tensor

    def __init__(self, scheme: Scheme, *, role: Role, delta: float) -> None:
        super().__init__()
        self.scheme, self.role = scheme, role
        free = not scheme.symmetric or isinstance(scheme.grid, MidRise)
        self.upper = nn.Parameter(torch.empty(0))
        self.register_parameter("lower", nn.Parameter(torch.empty(0)) if free else None)
        self.register_parameter("output_scale", nn.Parameter(torch.empty(0)) if role == "weight" else None)
        self.register_buffer("delta", torch.tensor(delta))
        self.register_buffer("signed", torch.tensor(scheme.signed))
        loads_into_fresh(self)

    def calibrate(self, qparams: QParams) -> None:
        """Start at the ends of the observed range (3 standard deviations with the observer `mean_std`)."""
        self.scheme = settled(self.scheme, signed=qparams.scheme.signed)
        if not self.scheme.quant_max:
            raise CalibrationError("EWGS has no activations of 1 signed bit, and negative values were seen. Use 2 bits")
        scale = qparams.scale.detach()
        self.upper.data = (self.scheme.quant_max - qparams.zero_point) * scale
        if self.lower is not None:
            self.lower.data = (self.scheme.quant_min - qparams.zero_point) * scale
        if self.output_scale is not None:
            self.output_scale.data = self.upper.data.clone()
        self.signed = torch.tensor(qparams.scheme.signed, device=scale.device)

    def step_and_zero_point(self) -> tuple[Tensor, Tensor]:
        """(u - l) / steps and the zero point, as floats that carry gradients to l and u."""
        low, high = self.scheme.quant_min, self.scheme.quant_max
        if self.lower is None:
            step = self._positive(self.upper / high)
            return step, torch.zeros_like(step)
        step = self._positive((self.upper - self.lower) / self._steps())
        if isinstance(self.scheme.grid, MidRise):
            return step, torch.zeros_like(step)
        z = (low - self.lower / step).detach().round().clamp(low, high)
        return step, straight_through(z, low - straight_through((low - z) * step, self.lower) / step)

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """Shapes: x as calibrated, with any batch size; raises CalibrationError before calibration."""
        require_calibrated(self.upper)
        scheme, mid_rise = self.scheme, isinstance(self.scheme.grid, MidRise)
        step, z = (expand(t.to(x.dtype), x.dim(), scheme.granularity) for t in self.step_and_zero_point())
        if mid_rise and self.lower is not None:
            x = x - expand(((self.upper + self.lower) / 2).to(x.dtype), x.dim(), scheme.granularity)
        low, high = ((level - z) / (2 if mid_rise else 1) for level in (scheme.quant_min, scheme.quant_max))
        u = (x / step).clamp(low, high)
        level = ScaledRound.apply(  # type: ignore[no-untyped-call]
            u, z, self.delta.to(x.dtype), self._steps(), mid_rise, noise
        )
        if self.output_scale is None:
            return level * step  # type: ignore[no-any-return]
        scale = expand(self._scale().to(x.dtype), x.dim(), scheme.granularity)
        return level * (2 * scale if mid_rise else scale)  # type: ignore[no-any-return]

    def update_delta(self, gradient: Tensor, diagonal: Tensor) -> None:
        """δ = max(0, (Tr(H) / N) / (3 std(g))) (section 3.3), H and g those of the loss to x_q.

        Takes them to this quantizer's output, as `hessian_diagonal` does; the range is their unit of length.
        Shapes: both as x; averages over batches are taken beforehand. Raises CalibrationError where g is constant.
        """
        width = expand(self.grid().scale, gradient.dim(), self.scheme.granularity) * (
            self.scheme.quant_max - self.scheme.quant_min
        )
        spread = 3 * (gradient.detach() * width).std()
        if not bool(spread > 0):
            raise CalibrationError("EWGS sets delta from a gradient that varies: give it one of a batch with a loss")
        self.delta = ((diagonal * width.square()).mean() / spread).clamp(min=0).detach().to(self.delta)

    def grid(self) -> QParams:
        """The scale and zero point of the learned range; for weights the output scale."""
        require_calibrated(self.upper)
        step, zero_point = self.step_and_zero_point()
        scale = step if self.output_scale is None else self._scale()
        return QParams(scale.detach(), zero_point.detach().to(torch.int32), self.scheme)

    def extra_repr(self) -> str:
        """The scheme in words."""
        return f"{self.scheme}, learned"

    def _scale(self) -> Tensor:
        assert self.output_scale is not None
        return self._positive(self.output_scale / self.scheme.quant_max)

    def _steps(self) -> int:
        return len(self.scheme.levels) - 1

    def _positive(self, step: Tensor) -> Tensor:
        step = step.abs().clamp(min=SMALLEST_SCALE)
        if isinstance(self.scheme.scale, PowerOfTwo):
            return straight_through(torch.exp2(step.detach().log2().round()), step)
        return step
