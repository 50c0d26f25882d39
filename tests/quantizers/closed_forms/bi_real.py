"""Bi-Real Net as its paper writes it: ApproxSign and the magnitude-aware gradient of section 3.3."""

import torch
from torch import Tensor

from isobit.core.granularity import PerChannel
from isobit.core.scheme import PowerOfTwo, Scheme
from isobit.quantizers.bi_real import BiReal, BiRealQuantizer
from isobit.quantizers.protocol import QuantizerSettings, Role

CASES: dict[str, tuple[QuantizerSettings, Scheme, Role]] = {
    "s1 weight": (BiReal(), Scheme(bits=1), "weight"),
    "s1 weight per-channel": (BiReal(), Scheme(bits=1, granularity=PerChannel(0)), "weight"),
    "s1 weight 2^n": (BiReal(), Scheme(bits=1, scale=PowerOfTwo()), "weight"),
    "s1": (BiReal(), Scheme(bits=1), "activation"),
    "s1 adapt": (BiReal(), Scheme(bits=1, adapt_sign=True), "activation"),
    "s1 per-channel": (BiReal(), Scheme(bits=1, granularity=PerChannel(1)), "activation"),
}


def expected(quantizer: BiRealQuantizer, x: Tensor, upstream: Tensor) -> dict[str, Tensor]:
    sign = torch.where(x >= 0, 1.0, -1.0).to(x.dtype)
    if quantizer.role == "activation":
        slope = torch.zeros_like(x)
        left, right = (x >= -1) & (x < 0), (x >= 0) & (x < 1)
        slope[left] = 2 + 2 * x[left]
        slope[right] = 2 - 2 * x[right]
        return {"output": sign, "x": upstream * slope}
    shared = [d for d in range(x.dim()) if not isinstance(quantizer.scheme.granularity, PerChannel) or d != 0]
    n = x.numel() // (x.shape[0] if 0 not in shared else 1)
    alpha = x.abs().sum(shared, keepdim=True) / n
    if isinstance(quantizer.scheme.scale, PowerOfTwo):
        alpha = 2.0 ** alpha.log2().round()
    return {"output": alpha * sign, "x": upstream * alpha * (x.abs() < 1)}
