"""APoT as its paper writes it: levels between -1 and 1, and the gradients of the reparameterised clipping function."""

import torch
from torch import Tensor

from isobit.core.granularity import PerChannel
from isobit.core.scheme import Scheme
from isobit.quantizers.apot import Apot, ApotQuantizer
from isobit.quantizers.protocol import QuantizerSettings, Role

CASES: dict[str, tuple[QuantizerSettings, Scheme, Role]] = {
    "s2 weight": (Apot(weight_alpha=1.5), Scheme(bits=2), "weight"),
    "s3 weight": (Apot(weight_alpha=1.5), Scheme(bits=3), "weight"),
    "s4 weight": (Apot(weight_alpha=1.5), Scheme(bits=4), "weight"),
    "s5 weight": (Apot(weight_alpha=1.5), Scheme(bits=5), "weight"),
    "s6 weight": (Apot(weight_alpha=1.5), Scheme(bits=6), "weight"),
    "s4 weight per-channel": (Apot(weight_alpha=1.5), Scheme(bits=4, granularity=PerChannel(0)), "weight"),
    "s4 weight, clipped gradient": (Apot(weight_alpha=1.5, clip_weight_gradient=True), Scheme(bits=4), "weight"),
    "s4 weight as it is": (Apot(normalise_weights=False), Scheme(bits=4), "weight"),
    "u2": (Apot(activation_alpha=1.0), Scheme(bits=2, signed=False), "activation"),
    "u3": (Apot(activation_alpha=1.0), Scheme(bits=3, signed=False), "activation"),
    "u5": (Apot(activation_alpha=1.0), Scheme(bits=5, signed=False), "activation"),
    "s4": (Apot(activation_alpha=1.0), Scheme(bits=4), "activation"),
    "s4 observed": (Apot(activation_alpha=None), Scheme(bits=4, adapt_sign=True), "activation"),
    "u4 per-channel": (
        Apot(activation_alpha=1.0),
        Scheme(bits=4, signed=False, granularity=PerChannel(1)),
        "activation",
    ),
}

TERMS = {
    1: [[0, 1]],
    2: [[0, 1 / 2, 1 / 4, 1 / 8]],
    3: [[0, 1 / 2, 1 / 4, 1 / 16], [0, 1 / 8]],
    4: [[0, 1 / 2, 1 / 8, 1 / 32], [0, 1 / 4, 1 / 16, 1 / 64]],
    5: [[0, 1 / 2, 1 / 8, 1 / 64], [0, 1 / 4, 1 / 16, 1 / 128], [0, 1 / 32]],
}


def magnitudes(bits: int) -> Tensor:
    sums = torch.zeros(1, dtype=torch.float64)
    for terms in TERMS[bits]:
        sums = (sums[:, None] + torch.tensor(terms, dtype=torch.float64)).flatten().unique()
    return sums / sums.max()


def expected(quantizer: ApotQuantizer, x: Tensor, upstream: Tensor) -> dict[str, Tensor]:
    settings, scheme, weight = quantizer.settings, quantizer.scheme, quantizer.role == "weight"
    axis = scheme.granularity.axis if isinstance(scheme.granularity, PerChannel) else None
    alpha = quantizer.alpha.detach()
    if axis is not None:
        alpha = alpha.reshape([-1 if d == axis else 1 for d in range(x.dim())])
    v, deviation = x, torch.ones((), dtype=x.dtype)
    if weight and settings.normalise_weights:
        mean = x.sum() / x.numel()
        deviation = (((x - mean) ** 2).sum() / (x.numel() - 1)) ** 0.5
        v = (x - mean) / deviation
    v = v / alpha
    levels = magnitudes(scheme.bits - int(scheme.signed))
    clipped = v.clamp(-1 if scheme.signed else 0, 1)
    projected = levels[(clipped.abs()[..., None] - levels).abs().argmin(-1)] * clipped.sign()
    inside = (v.abs() < 1) if scheme.signed else (v > 0) & (v < 1)
    passes = torch.ones_like(inside) if weight and not settings.clip_weight_gradient else inside
    to_alpha = upstream * torch.where(inside, projected - v, clipped.round())
    reduced = [d for d in range(x.dim()) if d != axis]
    return {
        "output": alpha * projected,
        "x": upstream * passes / deviation,
        "alpha": to_alpha.sum(reduced).reshape(quantizer.alpha.shape),
    }
