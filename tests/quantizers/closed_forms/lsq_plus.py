"""LSQ+ as its paper writes it: equations 3 to 5, with the offset β' = -z s that the integer zero point stands for."""

import math

import torch
from torch import Tensor

from isobit.core.granularity import PerChannel
from isobit.core.scheme import PowerOfTwo, Scheme
from isobit.quantizers.lsq_plus import LsqPlus, LsqPlusQuantizer
from isobit.quantizers.protocol import QuantizerSettings, Role

CASES: dict[str, tuple[QuantizerSettings, Scheme, Role]] = {
    "u8 asymmetric": (LsqPlus(), Scheme(signed=False, symmetric=False), "activation"),
    "u2 asymmetric": (LsqPlus(), Scheme(bits=2, signed=False, symmetric=False), "activation"),
    "s4 asymmetric": (LsqPlus(), Scheme(bits=4, symmetric=False), "activation"),
    "u4 asymmetric, undamped": (LsqPlus(damp=False), Scheme(bits=4, signed=False, symmetric=False), "activation"),
    "u8 asymmetric 2^n": (LsqPlus(), Scheme(signed=False, symmetric=False, scale=PowerOfTwo()), "activation"),
    "u3 asymmetric per-channel": (
        LsqPlus(),
        Scheme(bits=3, signed=False, symmetric=False, granularity=PerChannel(1)),
        "activation",
    ),
    "u4": (LsqPlus(), Scheme(bits=4, signed=False), "activation"),
    "s8 weight": (LsqPlus(), Scheme(), "weight"),
    "s3 weight narrow": (LsqPlus(), Scheme(bits=3, narrow=True), "weight"),
    "s4 weight per-channel": (LsqPlus(), Scheme(bits=4, granularity=PerChannel(0)), "weight"),
}


def expected(quantizer: LsqPlusQuantizer, x: Tensor, upstream: Tensor) -> dict[str, Tensor]:
    scheme, n, p = quantizer.scheme, quantizer.scheme.quant_min, quantizer.scheme.quant_max
    state = {name: value.detach().double() for name, value in quantizer.state_dict().items()}
    axis = scheme.granularity.axis if isinstance(scheme.granularity, PerChannel) else None
    shape = [1] * x.dim()
    if axis is not None:
        shape[axis] = -1
    reduced = [d for d in range(x.dim()) if d != axis]

    s = state["scale"].reshape(shape)
    if isinstance(scheme.scale, PowerOfTwo):
        s = 2.0 ** s.log2().round()
    z = torch.zeros_like(s)
    if "beta" in state:
        z = (-state["beta"].reshape(shape) / s).round().clamp(n, p)
    offset = -z * s
    v = (x - offset) / s
    below, above = v <= n, v >= p
    inside = ~below & ~above

    sample = x if quantizer.role == "weight" else x[0]
    g = 1 / math.sqrt(sample.numel() / s.numel() * p) if quantizer.damp else 1.0
    to_scale = torch.where(inside, v.round() - v, torch.where(below, float(n), float(p)))
    found = {
        "output": (x / s + z).round().clamp(n, p) * s + offset,
        "x": upstream * inside,
        "scale": (upstream * to_scale * g).sum(reduced).reshape(quantizer.scale.shape),
    }
    if "beta" in state:
        found["beta"] = (upstream * ~inside * g).sum(reduced).reshape(quantizer.scale.shape)
    return found
