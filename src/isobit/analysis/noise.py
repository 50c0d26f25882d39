"""Noise: how far x̂ is from x, summed over any number of batches."""

import math
from typing import final

import torch
from torch import Tensor

CHUNK = 1 << 16
"""Values at a time in float64: what stays in the cache of one core."""


@final
class Noise:
    """Sums over pairs (x, x̂) in float64, from which SQNR, cosine and mean squared error follow.

    >>> noise = Noise()
    >>> noise.add(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.5]))
    >>> noise.sqnr_db, noise.mse
    (20.0, 0.125)
    """

    def __init__(self) -> None:
        self.count = 0
        self.signal = self.noise = self._quantized = self._product = 0.0

    def add(self, x: Tensor, x_hat: Tensor) -> None:
        """Take in x and x̂, of the same shape."""
        if x.shape != x_hat.shape:
            raise ValueError(f"x has the shape {tuple(x.shape)}, x̂ {tuple(x_hat.shape)}")
        sums = torch.zeros(4, dtype=torch.float64, device=x.device)
        parts = torch.split(x.detach().flatten(), CHUNK), torch.split(x_hat.detach().flatten(), CHUNK)
        pairs = zip(*parts, strict=True)
        for a, b in ((a.double(), b.double()) for a, b in pairs):
            difference = a - b
            sums += torch.stack([a.dot(a), difference.dot(difference), b.dot(b), a.dot(b)])
        signal, noise, quantized, product = sums.tolist()
        self.count += x.numel()
        self.signal, self.noise = self.signal + signal, self.noise + noise
        self._quantized, self._product = self._quantized + quantized, self._product + product

    @property
    def sqnr_db(self) -> float:
        """10 log10(Σ x² / Σ (x - x̂)²) in dB; infinite where x̂ = x."""
        if self.noise == 0.0:
            return math.inf
        return 10.0 * math.log10(self.signal / self.noise) if self.signal > 0.0 else -math.inf

    @property
    def cosine(self) -> float:
        """Σ x x̂ / sqrt(Σ x² Σ x̂²); 1 where x̂ = x, also for zeros, and 0 where only one of them is zero."""
        if self.noise == 0.0:
            return 1.0
        norms = math.sqrt(self.signal) * math.sqrt(self._quantized)
        return min(self._product / norms, 1.0) if norms > 0.0 else 0.0

    @property
    def mse(self) -> float:
        """Σ (x - x̂)² / n."""
        return self.noise / self.count if self.count else 0.0
