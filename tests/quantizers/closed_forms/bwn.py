"""BWN as its paper writes it: equations 4 and 6, and the two gradients of section 3.1."""

import torch
from torch import Tensor

from isobit.core.granularity import PerChannel
from isobit.core.scheme import PowerOfTwo, Scheme
from isobit.quantizers.bwn import Bwn, BwnQuantizer
from isobit.quantizers.protocol import QuantizerSettings, Role

CASES: dict[str, tuple[QuantizerSettings, Scheme, Role]] = {
    "s1 weight": (Bwn(), Scheme(bits=1), "weight"),
    "s1 weight per-channel": (Bwn(), Scheme(bits=1, granularity=PerChannel(0)), "weight"),
    "s1 weight xnor": (Bwn(gradient="xnor"), Scheme(bits=1), "weight"),
    "s1 weight xnor per-channel": (Bwn(gradient="xnor"), Scheme(bits=1, granularity=PerChannel(0)), "weight"),
    "s1 weight 2^n": (Bwn(), Scheme(bits=1, scale=PowerOfTwo()), "weight"),
}


def expected(quantizer: BwnQuantizer, x: Tensor, upstream: Tensor) -> dict[str, Tensor]:
    shared = [d for d in range(x.dim()) if not isinstance(quantizer.scheme.granularity, PerChannel) or d != 0]
    alpha = x.abs().sum(shared, keepdim=True) / (x.numel() / (x.shape[0] if 0 not in shared else 1))
    if isinstance(quantizer.scheme.scale, PowerOfTwo):
        alpha = 2.0 ** alpha.log2().round()
    sign = torch.where(x >= 0, 1.0, -1.0).to(x.dtype)
    gradient = upstream
    if quantizer.gradient == "xnor":
        n = x.numel() / alpha.numel()
        gradient = upstream * (1 / n + alpha * (x.abs() <= 1))
    return {"output": alpha * sign, "x": gradient}
