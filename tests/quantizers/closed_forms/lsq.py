"""LSQ as its paper writes it: equations 1 to 3, with the gradient scale of section 2.2."""

import math

import torch
from torch import Tensor

from isobit.core.granularity import PerChannel
from isobit.core.scheme import Scheme
from isobit.quantizers.lsq import Lsq, LsqQuantizer
from isobit.quantizers.protocol import QuantizerSettings, Role

CASES: dict[str, tuple[QuantizerSettings, Scheme, Role]] = {
    "s8 weight": (Lsq(), Scheme(), "weight"),
    "s4 weight": (Lsq(), Scheme(bits=4), "weight"),
    "s2 weight": (Lsq(), Scheme(bits=2), "weight"),
    "s3 weight narrow": (Lsq(), Scheme(bits=3, narrow=True), "weight"),
    "s4 weight per-channel": (Lsq(), Scheme(bits=4, granularity=PerChannel(0)), "weight"),
    "s4 weight per-channel of axis 1": (Lsq(), Scheme(bits=4, granularity=PerChannel(1)), "weight"),
    "s4 weight undamped": (Lsq(damp=False), Scheme(bits=4), "weight"),
    "u8": (Lsq(), Scheme(signed=False), "activation"),
    "u2": (Lsq(), Scheme(bits=2, signed=False), "activation"),
    "s4": (Lsq(), Scheme(bits=4), "activation"),
}


def expected(quantizer: LsqQuantizer, x: Tensor, upstream: Tensor) -> dict[str, Tensor]:
    scheme = quantizer.scheme
    q_n, q_p = -scheme.quant_min, scheme.quant_max
    axis = scheme.granularity.axis if isinstance(scheme.granularity, PerChannel) else None
    shape = [1] * x.dim()
    if axis is not None:
        shape[axis] = -1
    reduced = [d for d in range(x.dim()) if d != axis]
    scale = quantizer.scale.detach()
    s = scale.reshape(shape)
    u = x / s
    below, above = u <= -q_n, u >= q_p
    slope = torch.where(below, -float(q_n), torch.where(above, float(q_p), u.round() - u))
    sharing = x.numel() // scale.numel()
    features = sharing if quantizer.role == "weight" else sharing // x.shape[0]
    g = 1 / math.sqrt(features * q_p) if quantizer.damp else 1.0
    return {
        "output": u.round().clamp(-q_n, q_p) * s,
        "x": upstream * (~below & ~above),
        "scale": (upstream * slope).sum(reduced).reshape(scale.shape) * g,
    }
