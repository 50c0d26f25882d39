"""Rounding rules, as values. Half-even is what ONNX, PyTorch and x86 use; the others belong to other engines."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class HalfEven:
    """Nearest; ties go to the even neighbour (IEEE 754, `torch.round`, `rint`)."""


@dataclass(frozen=True, slots=True)
class HalfAway:
    """Nearest; ties go away from zero (C's `round`, gemmlowp)."""


@dataclass(frozen=True, slots=True)
class Floor:
    """The next integer below (an arithmetic shift to the right)."""


@dataclass(frozen=True, slots=True)
class Stochastic:
    """floor(v) + 1 with probability v - floor(v), so that E[round(v)] = v. The seed fixes every draw."""

    seed: int = 0


Rounding = HalfEven | HalfAway | Floor | Stochastic


def round_to_integer(v: Tensor, rounding: Rounding, noise: Tensor | None = None) -> Tensor:
    """Round `v`, keeping its dtype. Stochastic rounding takes `noise`, uniform in [0, 1), of the shape of `v`.

    >>> round_to_integer(torch.tensor([-1.5, -0.5, 0.5, 2.5]), HalfEven()).tolist()
    [-2.0, -0.0, 0.0, 2.0]
    >>> round_to_integer(torch.tensor([-1.5, -0.5, 0.5, 2.5]), HalfAway()).tolist()
    [-2.0, -1.0, 1.0, 3.0]
    """
    match rounding:
        case HalfEven():
            return v.round()
        case HalfAway():
            whole = v.trunc()  # floor(|v| + 0.5) would be wrong at 0.49999997, whose sum rounds up to 1
            return torch.where((v - whole).abs() >= 0.5, whole + v.sign(), whole)
        case Floor():
            return v.floor()
        case Stochastic():
            if noise is None:
                noise = uniform_noise(v, seed=rounding.seed, step=0)
            below = v.floor()
            return below + (noise < v - below).to(v.dtype)


def uniform_noise(like: Tensor, *, seed: int, step: int | Tensor) -> Tensor:
    """Uniform numbers in [0, 1) of the shape of `like`, a function of (seed, step, position) alone.

    A counter-based hash (two rounds of a 32-bit multiply-xorshift mixer) in place of a generator: it needs no
    state, gives the same integers on every device, and traces under `torch.compile` and `torch.export`.
    """
    mask = 0xFFFFFFFF
    index = torch.arange(like.numel(), device=like.device, dtype=torch.int64)
    key = _mix(torch.as_tensor(step, device=like.device, dtype=torch.int64) + (seed & mask) * 0x9E3779B1)
    bits = _mix(index + _mix(key + (seed >> 32)))
    return ((bits >> 8).to(like.dtype) * (1.0 / (1 << 24))).reshape(like.shape)


def _mix(x: Tensor) -> Tensor:
    mask = 0xFFFFFFFF
    x = x & mask
    x = ((x ^ (x >> 16)) * 0x45D9F3B) & mask
    x = ((x ^ (x >> 15)) * 0x2C1B3C6D) & mask
    return x ^ (x >> 16)
