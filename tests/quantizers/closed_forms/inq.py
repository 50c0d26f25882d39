"""INQ as its paper writes it: equations 1 to 4, the partition by magnitude, and no gradient to what is frozen."""

import math
from itertools import pairwise

import torch
from torch import Tensor

from isobit.core.granularity import PerChannel
from isobit.core.scheme import PowerOfTwo, Scheme
from isobit.quantizers.inq import Inq, InqQuantizer
from isobit.quantizers.protocol import QuantizerSettings, Role

ALL = Inq(fractions=(1.0,), begins=(0.0,))
CASES: dict[str, tuple[QuantizerSettings, Scheme, Role]] = {
    **{f"s{bits} weight, half": (Inq(), Scheme(bits=bits), "weight") for bits in (2, 3, 5)},
    **{f"s{bits} weight, all": (ALL, Scheme(bits=bits), "weight") for bits in (2, 3, 4, 5, 6)},
    "s5 weight, none": (Inq(begins=(0.1, 0.2, 0.3, 0.4)), Scheme(bits=5), "weight"),
    "s4 weight, half, per-channel": (Inq(), Scheme(bits=4, granularity=PerChannel(0)), "weight"),
    "s4 weight, all, 2^n": (ALL, Scheme(bits=4, scale=PowerOfTwo()), "weight"),
}


def expected(quantizer: InqQuantizer, x: Tensor, upstream: Tensor) -> dict[str, Tensor]:
    bits, settings = quantizer.scheme.bits, quantizer.settings
    part = settings.fractions[0] if settings.begins[0] == 0 else 0.0
    seen = (0.4 * x.float()).abs()  # what the observer saw
    whole = not isinstance(quantizer.scheme.granularity, PerChannel)
    quantized = torch.zeros_like(x)
    for channel in range(len(x)):
        n1 = math.floor(math.log2(4 * float(seen.max() if whole else seen[channel].max()) / 3))
        n2 = n1 + 1 - 2 ** (bits - 1) // 2
        powers = [0.0, *(2.0**n for n in range(n2, n1 + 1))]
        for alpha, beta in pairwise(powers):
            w = x[channel]
            quantized[channel][w.abs() >= (alpha + beta) / 2] = beta
        quantized[channel] *= x[channel].sign()
    order = x.abs().flatten().argsort(descending=True)
    frozen = torch.zeros(x.numel(), dtype=torch.bool)
    frozen[order[: round(part * x.numel())]] = True
    frozen = frozen.reshape(x.shape)
    output = torch.where(frozen, quantized, x)
    return {"output": output, "x": torch.where(frozen, 0.0, upstream)}
