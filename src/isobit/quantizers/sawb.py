"""SAWB: the clipping level of weights from their first two moments (Choi et al., MLSys 2019, arXiv:1807.06964)."""

from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from isobit.core.errors import UnsupportedError
from isobit.core.fake_quantize import fake_quantize
from isobit.core.granularity import blocks, from_blocks
from isobit.core.grid import MidRise, Uniform
from isobit.core.qparams import QParams, scale_and_zero_point
from isobit.core.rounding import HalfEven
from isobit.core.scheme import PowerOfTwo, Scheme
from isobit.quantizers.protocol import Role, loads_into_fresh, require_calibrated

MID_RISE = {2: (3.12, -2.064), 3: (7.509, -6.892), 4: (12.68, -12.80), 5: (17.74, -18.64)}
"""c1 and c2 for 2^bits levels without 0, in the authors' code (IBM's fms-model-optimizer)."""

ZERO_LEVEL = {2: (2.6, -1.71), 4: (12.035, -12.03), 7: (28.24, -30.81), 8: (31.76, -35.04)}
"""c1 and c2 for 2^bits - 1 levels around 0, in the same code."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sawb:
    """Settings of SAWB. `zero_level` takes 2^b - 1 levels around 0 in place of the paper's 2^b without one.

    Coefficients are published for 2 to 5 bits without a zero, and for 2, 4, 7 and 8 bits with one. 7 bits and more,
    and narrow schemes, always have it. They were fitted to bell-shaped weights: up to 4 bits the error is within 2 %
    of the least for Gaussian, Laplacian, logistic and uniform ones, while 8 bits clip uniform ones badly. Calibration
    starts at that least error itself.
    """

    observer: ClassVar[str] = "mse"
    stochastic_rounding: ClassVar[bool] = True
    zero_level: bool = False

    def build(self, scheme: Scheme, *, role: Role = "activation") -> "SawbQuantizer":
        """Raises UnsupportedError for activations, and for schemes or bits that have no coefficients."""
        if role == "activation":
            raise UnsupportedError("SAWB is for weights alone: use `pact` for activations, as its paper does")
        if not (scheme.signed and scheme.symmetric) or scheme.grid not in (Uniform(), MidRise()):
            raise UnsupportedError("SAWB has evenly spaced levels on both sides of 0: use a signed symmetric scheme")
        if isinstance(scheme.scale, PowerOfTwo) or scheme.rounding != HalfEven():
            raise UnsupportedError("SAWB computes a float scale and rounds to nearest: use `tqt` for powers of two")
        zero_level = self.zero_level or scheme.narrow or scheme.bits >= min(set(ZERO_LEVEL) - set(MID_RISE))
        table = ZERO_LEVEL if zero_level else MID_RISE
        if scheme.bits not in table:
            known = ", ".join(map(str, table))
            form = "with" if zero_level else "without"
            raise UnsupportedError(f"SAWB has no coefficients for bits={scheme.bits} {form} a level at 0: use {known}")
        grid = Uniform() if zero_level else MidRise()
        scheme = replace(scheme, grid=grid, narrow=zero_level, adapt_sign=False)
        return SawbQuantizer(scheme, coefficients=table[scheme.bits])


def clipping_level(w: Tensor, scheme: Scheme, coefficients: tuple[float, float]) -> Tensor:
    """α* = c1 sqrt(E[w²]) + c2 E|w| over what shares a scale, and at least E|w|. Shape: the scale's.

    For weights of one magnitude the fit falls below that magnitude, from 4 bits on even below 0; hence the bound.
    """
    rows = blocks(w, scheme.granularity)
    mean = rows.abs().mean(1)
    alpha = coefficients[0] * rows.square().mean(1).sqrt() + coefficients[1] * mean
    return from_blocks(torch.maximum(alpha, mean), tuple(w.shape), scheme.granularity)


@final
class SawbQuantizer(nn.Module):
    """ŵ = α* (2 quantize_b(clip(w / α*, -1, 1) / 2 + 1/2) - 1) with quantize_b(r) = round((2^b - 1) r) / (2^b - 1).

    That is a mid-rise grid of scale α* / (2^b - 1); with a level at 0 it is the narrow grid of scale α* / quant_max.
    The gradient to w is 1 inside (-α*, α*), else 0; α* has none. Nothing is learned: α* follows the weights in
    training and stays as it is at inference. Shapes: w as calibrated.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, scheme: Scheme, *, coefficients: tuple[float, float]) -> None:
        super().__init__()
        self.scheme, self.coefficients = scheme, coefficients
        self.register_buffer("scale", torch.empty(0))
        self.register_buffer("zero_point", torch.empty(0, dtype=torch.int32))
        loads_into_fresh(self)

    def calibrate(self, qparams: QParams) -> None:
        """Start from the calibrated range: that of least error, with the observer `mse`."""
        low, high = (bound.detach() for bound in qparams.range())
        self.scale, self.zero_point = scale_and_zero_point(low, high, self.scheme)

    def forward(self, w: Tensor, noise: Tensor | None = None) -> Tensor:
        """Shapes: w as calibrated; raises CalibrationError before calibration."""
        require_calibrated(self.scale)
        scale = self.scale
        if self.training:
            alpha = clipping_level(w.detach(), self.scheme, self.coefficients)
            scale, _ = scale_and_zero_point(-alpha, alpha, self.scheme)
            self.scale.copy_(scale)
        return fake_quantize(w, scale, self.zero_point, self.scheme, noise=noise)

    def grid(self) -> QParams:
        """The scale of the last training step, or of calibration."""
        require_calibrated(self.scale)
        return QParams(self.scale.detach(), self.zero_point, self.scheme)

    def extra_repr(self) -> str:
        """The scheme in words."""
        return f"{self.scheme}, clipped by moments"
