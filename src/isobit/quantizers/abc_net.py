"""ABC-Net: weights are a sum of binary bases (Lin et al., NeurIPS 2017, arXiv:1711.11294)."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, final

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from isobit.core.errors import SettingError, UnsupportedError
from isobit.core.granularity import PerTensor
from isobit.core.grid import Codebook, Uniform
from isobit.core.qparams import QParams
from isobit.core.rounding import HalfEven
from isobit.core.scheme import PowerOfTwo, Scheme
from isobit.quantizers.protocol import Role, loads_into_fresh, require_calibrated

WIDEST = 8
"""The most bases; the paper has up to 5. A codebook with an index of a byte holds the sums of 8."""

WeightGradient = Literal["straight_through", "sum"]


@dataclass(frozen=True, kw_only=True, slots=True)
class AbcNet:
    """Settings of ABC-Net. `gradient` is "straight_through" (g to w), or "sum" for g Σ α_i, which the paper has.

    The paper passes the gradient of each base on to w, and a base is multiplied by α_i: the sum is the largest
    magnitude that a weight has, mostly well below 1, and goes with Adam.
    """

    observer: ClassVar[str] = "min_max"
    gradient: WeightGradient = "straight_through"

    def __post_init__(self) -> None:
        if self.gradient not in ("straight_through", "sum"):
            raise SettingError(f"the gradient of ABC-Net is 'straight_through' or 'sum', not {self.gradient!r}")

    def build(self, scheme: Scheme, *, role: Role = "activation") -> "AbcNetQuantizer":
        """Raises UnsupportedError for activations, more than 8 bits, and where a codebook cannot follow the scheme."""
        if role != "weight":
            raise UnsupportedError(
                "ABC-Net's binary activations have thresholds of their own, which a grid cannot declare: use `bi_real` "
                "for 1 bit, or `lsq`"
            )
        if scheme.bits > WIDEST:
            raise UnsupportedError(f"ABC-Net has a base for each bit, up to {WIDEST}, not {scheme.bits}: use `lsq`")
        if not (scheme.signed and scheme.symmetric) or scheme.granularity != PerTensor():
            raise UnsupportedError(
                "ABC-Net has one sum of bases for a layer: use a signed, symmetric, per-tensor scheme, or `bwn` for a "
                "scale in each channel"
            )
        if isinstance(scheme.scale, PowerOfTwo) or scheme.narrow:
            raise UnsupportedError("least squares finds ABC-Net's values: use a float scale without `narrow`, or `lsq`")
        if scheme.grid not in (Uniform(), Codebook()) or scheme.rounding != HalfEven():
            raise UnsupportedError("ABC-Net has values of its own: use a uniform grid with rounding to nearest")
        return AbcNetQuantizer(replace(scheme, grid=Codebook(), adapt_sign=False), gradient=self.gradient)


def shifts(count: int) -> list[float]:
    """u_i = -1 + 2 (i - 1) / (M - 1), the shifts of the M bases in standard deviations; 0 for a single one.

    >>> shifts(3)
    [-1.0, 0.0, 1.0]
    """
    return [0.0] if count == 1 else [-1 + 2 * i / (count - 1) for i in range(count)]


def positive_bases(w: Tensor, count: int) -> Tensor:
    """How many of the bases sign(w - mean(w) + u_i std(w)) are +1; sign(0) = 1. Shapes: w any, (its shape,) int64.

    They are the last ones, since the shifts ascend: that number says all.
    """
    w = w.detach().double()
    mean, deviation = w.mean(), w.std(correction=0)
    above = [w - mean + u * deviation >= 0 for u in shifts(count)]
    return torch.stack(above).sum(0)


def least_squares(w: Tensor, positive: Tensor, count: int) -> Tensor:
    """The α of least ‖w - Σ α_i B_i‖². Shapes: w and positive alike, α (count,) float64.

    Weights with p bases at +1 get one value v_p. Only v_0 = -v_M = -Σ α_i is bound, so the others are the means of
    their weights, and v_M that of both ends, where those of p = 0 change their sign. v_p - v_(p-1) = 2 α_(M-p+1).
    Where no weight has p, any v_p is as good, and it is 0. So no normal equations are solved, which would be singular.
    """
    member = positive.flatten()
    sizes = torch.zeros(count + 1, dtype=torch.float64, device=w.device)
    sums = sizes.clone().index_add_(0, member, w.detach().double().flatten())
    sizes = sizes.index_add(0, member, torch.ones_like(member, dtype=torch.float64))
    end = (sums[-1:] - sums[:1]) / (sizes[-1:] + sizes[:1]).clamp(min=1)
    inner = sums[1:-1] / sizes[1:-1].clamp(min=1)
    return (torch.cat([-end, inner, end]).diff() / 2).flip(0)


def sums_of(alpha: Tensor) -> Tensor:
    """Σ ± α_i for every choice of signs; bit M - i of the index is 1 where the sign of α_i is +. Shape: (2^M,)."""
    values = alpha.new_zeros(1)
    for one in alpha.unbind():
        values = torch.stack([values - one, values + one], 1).flatten()
    return values


class PassGradient(torch.autograd.Function):
    """The quantized weights; their gradient, times a factor, goes to w."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, quantized: Tensor, factor: Tensor) -> Tensor:
        """Shapes: w and quantized alike; factor ()."""
        del w
        ctx.save_for_backward(factor)
        return quantized.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """See the class."""
        (factor,) = ctx.saved_tensors
        return grad * factor, None, None


@final
class AbcNetQuantizer(nn.Module):
    """ŵ = Σ α_i B_i with B_i = sign(w - mean(w) + u_i std(w)), one base for each bit (section 3.1).

    The shifts u_i are spread evenly over [-1, 1], and α solves least squares over the layer, both anew in
    every forward pass; `grid` declares the 2^bits sums of the last one, in ascending order. Nothing is learned but w:
    its gradient is straight-through, or Σ α_i times it. Shapes: w any.

    Of the 2^bits sums, weights take bits + 1, since a base with a larger shift is +1 wherever the one before is.
    """

    alpha: Tensor

    def __init__(self, scheme: Scheme, *, gradient: WeightGradient) -> None:
        super().__init__()
        self.scheme, self.gradient = scheme, gradient
        self.register_buffer("alpha", torch.empty(0))
        loads_into_fresh(self)

    def calibrate(self, qparams: QParams) -> None:
        """Until weights pass: binary digits, whose sums lie evenly over the observed range."""
        highest = torch.maximum(*(bound.detach().abs() for bound in qparams.range()))
        digits = 2.0 ** torch.arange(self.scheme.bits, dtype=highest.dtype, device=highest.device)
        self.alpha = highest * digits / digits.sum()

    def forward(self, w: Tensor) -> Tensor:
        """Shapes: w any; raises CalibrationError before calibration."""
        require_calibrated(self.alpha)
        count = self.scheme.bits
        positive = positive_bases(w, count)
        self.alpha.copy_(least_squares(w, positive, count))
        quantized = sums_of(self.alpha)[(1 << positive) - 1].to(w.dtype)
        factor = self.alpha.sum() if self.gradient == "sum" else torch.ones_like(self.alpha[0])
        y: Tensor = PassGradient.apply(w, quantized, factor.to(w.dtype))  # type: ignore[no-untyped-call]
        return y

    def grid(self) -> QParams:
        """The sums for the last weights that passed, in ascending order, at scale 1."""
        require_calibrated(self.alpha)
        one = torch.ones((), device=self.alpha.device)
        codebook = sums_of(self.alpha).sort().values
        return QParams(one, torch.zeros_like(one, dtype=torch.int32), self.scheme, codebook)

    def extra_repr(self) -> str:
        """The scheme in words."""
        return f"{self.scheme}, {self.gradient}"
