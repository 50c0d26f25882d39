"""What stands in for a network's quantizers while one of its segments is reconstructed."""

from typing import final

import torch
from torch import Tensor, nn

from isobit.core.fake_quantize import fake_quantize
from isobit.core.granularity import expand
from isobit.core.qparams import SMALLEST_SCALE, QParams
from isobit.core.soft_rounding import inverse_rectified_sigmoid, rectified_sigmoid


@final
class SoftRounding(nn.Module):
    """Ŵ = s (clip(⌊W / s⌋ + h(V) + z, low, high) - z), V learned (AdaRound, arXiv:2004.10568, equation 22).

    At the start h(V) = W / s - ⌊W / s⌋: inside the range, Ŵ is W.
    """

    def __init__(self, weight: Tensor, grid: QParams) -> None:
        super().__init__()
        self.grid = grid
        scale = expand(grid.scale, weight.dim(), grid.scheme.granularity)
        u = weight.detach() / scale
        self.lower, self.scale = u.floor(), scale
        self.zero_point = expand(grid.zero_point, weight.dim(), grid.scheme.granularity).to(weight.dtype)
        self.v = nn.Parameter(inverse_rectified_sigmoid(u - self.lower))

    def forward(self, weight: Tensor) -> Tensor:
        """The softly rounded weight; the argument, which it was made of, does not count. Shapes: alike."""
        del weight
        return self._between(rectified_sigmoid(self.v))

    def hard(self) -> Tensor:
        """The weight with every value rounded for good: up where h(V) >= 1/2."""
        return self._between((self.v.detach() >= 0).to(self.lower.dtype))

    def _between(self, up: Tensor) -> Tensor:
        scheme = self.grid.scheme
        q = (self.lower + up + self.zero_point).clamp(scheme.quant_min, scheme.quant_max)
        return (q - self.zero_point) * self.scale


@final
class LearnedStep(nn.Module):
    """A static quantizer of activations whose step learns, s = s₀ r with r from 1, and which drops elements.

    With `quantized` below 1, each element is quantized with that probability and else passes as it is (QDrop,
    arXiv:2203.05740, equation 8). The gradient to r is LSQ's. A step that is not to be learned stays s₀.
    """

    def __init__(self, grid: QParams, *, learns: bool, quantized: float, generator: torch.Generator) -> None:
        super().__init__()
        self._grid, self.start = grid, grid.scale.clone()
        self.quantized, self.generator = quantized, generator
        self.r = nn.Parameter(torch.ones(()), requires_grad=learns)

    def scale(self) -> Tensor:
        """s₀ r, positive."""
        return (self._grid.scale * self.r.abs()).clamp(min=SMALLEST_SCALE) if self.r.requires_grad else self._grid.scale

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: any."""
        y = fake_quantize(x, self.scale(), self._grid.zero_point, self._grid.scheme)
        if self.quantized >= 1:
            return y
        return torch.where(torch.rand(x.shape, generator=self.generator) < self.quantized, y, x)
