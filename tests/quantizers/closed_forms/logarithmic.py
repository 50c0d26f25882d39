"""The logarithmic quantizer: powers of two counted down from α, and equation 3 of LSQ for α."""

import math

import torch
from torch import Tensor

from isobit.core.granularity import PerChannel
from isobit.core.scheme import PowerOfTwo, Scheme
from isobit.quantizers.logarithmic import Logarithmic, LogarithmicQuantizer
from isobit.quantizers.protocol import QuantizerSettings, Role

CHANNELS = Scheme(bits=4, granularity=PerChannel(0))
CASES: dict[str, tuple[QuantizerSettings, Scheme, Role]] = {
    **{f"s{bits} weight": (Logarithmic(), Scheme(bits=bits), "weight") for bits in (2, 3, 4, 5, 6)},
    "s4 weight per-channel": (Logarithmic(), CHANNELS, "weight"),
    "s4 weight undamped": (Logarithmic(damp=False), Scheme(bits=4), "weight"),
    "s4 weight 2^n": (Logarithmic(), Scheme(bits=4, scale=PowerOfTwo()), "weight"),
    **{f"u{bits}": (Logarithmic(), Scheme(bits=bits, signed=False), "activation") for bits in (1, 2, 3, 4)},
    "u4 per-channel": (Logarithmic(), Scheme(bits=4, signed=False, granularity=PerChannel(1)), "activation"),
    "s4": (Logarithmic(), Scheme(bits=4), "activation"),
    "s4 adapted": (Logarithmic(), Scheme(bits=4, adapt_sign=True), "activation"),
}


def expected(quantizer: LogarithmicQuantizer, x: Tensor, upstream: Tensor) -> dict[str, Tensor]:
    scheme, weight = quantizer.scheme, quantizer.role == "weight"
    axis = scheme.granularity.axis if isinstance(scheme.granularity, PerChannel) else None
    learned = quantizer.alpha.detach()
    alpha = learned if axis is None else learned.reshape([-1 if d == axis else 1 for d in range(x.dim())])
    if isinstance(scheme.scale, PowerOfTwo):
        alpha = 2.0 ** alpha.log2().round()
    powers = (2 ** (scheme.bits - 1) if scheme.signed else 2**scheme.bits) - 1
    magnitudes = torch.tensor([0.0] + [0.5**k for k in range(powers)], dtype=x.dtype)
    v = x / alpha
    clipped = v.clamp(-1 if scheme.signed else 0, 1)
    nearest = magnitudes[(clipped.abs()[..., None] - magnitudes).abs().argmin(-1)] * clipped.sign()
    inside = (v == clipped) & (clipped.abs() < 1) & (scheme.signed | (v > 0))
    to_alpha = upstream * torch.where(inside, nearest - v, clipped)
    reduced = [d for d in range(x.dim()) if d != axis]
    count = x.numel() if weight else x.numel() // x.shape[0]
    damping = 1 / math.sqrt(count // learned.numel()) if quantizer.damp else 1.0
    return {
        "output": alpha * nearest,
        "x": upstream * inside,
        "alpha": to_alpha.sum(reduced).reshape(learned.shape) * damping,
    }
