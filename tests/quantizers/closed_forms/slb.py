"""SLB as its paper writes it: the expectation over the levels, and its exact gradient to the logits."""

import torch
from torch import Tensor

from isobit.core.granularity import PerChannel
from isobit.core.scheme import PowerOfTwo, Scheme
from isobit.quantizers.protocol import QuantizerSettings, Role
from isobit.quantizers.slb import Slb, SlbQuantizer

CASES: dict[str, tuple[QuantizerSettings, Scheme, Role]] = {
    **{f"s{bits} weight": (Slb(), Scheme(bits=bits), "weight") for bits in (1, 2, 3, 4)},
    **{f"s{bits} weight, from scratch": (Slb(pretrained=False), Scheme(bits=bits), "weight") for bits in (1, 2, 4)},
    "s2 weight, sharp, from scratch": (Slb(softest=100.0, pretrained=False), Scheme(bits=2), "weight"),
    "s2 weight per-channel": (Slb(), Scheme(bits=2, granularity=PerChannel(0)), "weight"),
    "s4 weight 2^n": (Slb(), Scheme(bits=4, scale=PowerOfTwo()), "weight"),
}


def expected(quantizer: SlbQuantizer, x: Tensor, upstream: Tensor) -> dict[str, Tensor]:
    bits, logits, t = quantizer.scheme.bits, quantizer.logits.detach(), float(quantizer.sharpness)
    top = quantizer.scale * (2**bits - 1)
    top = top.reshape([-1, 1, 1]) if top.dim() else top
    values = [top * (2 * i / (2**bits - 1) - 1) for i in range(2**bits)]
    powers = [torch.exp(t * (logits[..., i] - logits.amax(-1))) for i in range(2**bits)]
    p = [power / sum(powers) for power in powers]
    output = sum((p[i] * values[i] for i in range(2**bits)), torch.zeros_like(x))
    to_logits = torch.stack([upstream * t * p[i] * (values[i] - output) for i in range(2**bits)], -1)
    return {"output": output, "x": torch.zeros_like(x), "logits": to_logits}
