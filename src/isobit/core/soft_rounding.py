"""Rounding that is learned: between down and up for each value, first softly, then for good."""

import math

import torch
from torch import Tensor

ZETA, GAMMA = 1.1, -0.1
"""The stretch of the rectified sigmoid (Louizos et al. 2018; AdaRound, arXiv:2004.10568, equation 23)."""


def rectified_sigmoid(v: Tensor) -> Tensor:
    """h(V) = clip(σ(V) (ζ - γ) + γ, 0, 1): how far up each value is rounded (AdaRound, equation 23).

    >>> rectified_sigmoid(torch.tensor([-9.0, 0.0, 9.0])).tolist()
    [0.0, 0.5, 1.0]
    """
    return (v.sigmoid() * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def inverse_rectified_sigmoid(h: Tensor) -> Tensor:
    """The V with h(V) = h, for 0 <= h <= 1; finite at both ends.

    >>> rectified_sigmoid(inverse_rectified_sigmoid(torch.tensor([0.0, 0.25, 1.0]))).tolist()
    [0.0, 0.25, 1.0]
    """
    return -torch.log((ZETA - GAMMA) / (h - GAMMA) - 1)


def undecided(v: Tensor, beta: float) -> Tensor:
    """Σ 1 - |2 h(V) - 1|^β, a scalar: how much is neither down nor up (AdaRound, equation 24)."""
    return (1 - (2 * rectified_sigmoid(v) - 1).abs().pow(beta)).sum()


def annealed(progress: float, *, warm_up: float, first: float, last: float) -> float:
    """β at `progress` in [0, 1]: `first` during the warm-up, then linearly to `last`; 0 <= warm_up < 1.

    >>> [annealed(p, warm_up=0.2, first=20, last=2) for p in (0.0, 0.2, 0.6, 1.0)]
    [20.0, 20.0, 11.0, 2.0]
    """
    rest = max(0.0, (progress - warm_up) / (1 - warm_up))
    return float(last + (first - last) * max(0.0, 1 - rest))


def half_cosine(progress: float) -> float:
    """From 1 to 0 along half a cosine: the factor of a learning rate at `progress` in [0, 1]."""
    return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
