"""TQT as its paper writes it: equations 4, 7 and 8."""

import math

import torch
from torch import Tensor

from isobit.core.granularity import PerChannel
from isobit.core.scheme import PowerOfTwo, Scheme
from isobit.quantizers.protocol import QuantizerSettings, Role
from isobit.quantizers.tqt import Tqt, TqtQuantizer

CASES: dict[str, tuple[QuantizerSettings, Scheme, Role]] = {
    "s8 weight": (Tqt(), Scheme(scale=PowerOfTwo()), "weight"),
    "s4 weight": (Tqt(), Scheme(bits=4, scale=PowerOfTwo()), "weight"),
    "s2 weight": (Tqt(), Scheme(bits=2, scale=PowerOfTwo()), "weight"),
    "s8 weight narrow, float scale": (Tqt(), Scheme(narrow=True), "weight"),
    "s3 weight per-channel": (Tqt(), Scheme(bits=3, scale=PowerOfTwo(), granularity=PerChannel(0)), "weight"),
    "u8": (Tqt(), Scheme(signed=False, scale=PowerOfTwo()), "activation"),
    "u3": (Tqt(), Scheme(bits=3, signed=False, scale=PowerOfTwo()), "activation"),
    "s8": (Tqt(), Scheme(scale=PowerOfTwo()), "activation"),
}


def expected(quantizer: TqtQuantizer, x: Tensor, upstream: Tensor) -> dict[str, Tensor]:
    scheme, n, p = quantizer.scheme, quantizer.scheme.quant_min, quantizer.scheme.quant_max
    axis = scheme.granularity.axis if isinstance(scheme.granularity, PerChannel) else None
    shape = [1] * x.dim()
    if axis is not None:
        shape[axis] = -1
    reduced = [d for d in range(x.dim()) if d != axis]

    log2_t = quantizer.log2_t.detach().double()
    s = (2.0 ** log2_t.ceil() / 2.0 ** (scheme.bits - 1 if scheme.signed else scheme.bits)).reshape(shape)
    r = (x / s).round()
    slope = torch.where(r < n, float(n), torch.where(r > p, float(p), r - x / s))
    return {
        "output": r.clamp(n, p) * s,
        "x": upstream * ((r >= n) & (r <= p)),
        "log2_t": (upstream * s * math.log(2) * slope).sum(reduced).reshape(log2_t.shape),
    }
