"""N2UQ's weights as the paper writes them: scaled, clipped to [-1, 1], rounded on 2^b - 1 steps, and scaled back."""

import numpy as np
import torch
from torch import Tensor

from isobit.core.granularity import PerChannel
from isobit.core.scheme import PowerOfTwo, Scheme
from isobit.quantizers.n2uq import N2uq, N2uqQuantizer
from isobit.quantizers.protocol import QuantizerSettings, Role

CHANNELS = PerChannel(0)
CASES: dict[str, tuple[QuantizerSettings, Scheme, Role]] = {
    **{f"s{bits} weight": (N2uq(), Scheme(bits=bits), "weight") for bits in (1, 2, 3, 4, 7)},
    **{f"s{b} weight per-channel": (N2uq(), Scheme(bits=b, granularity=CHANNELS), "weight") for b in (2, 4)},
    "s3 weight unit": (N2uq(unit_gradient=True), Scheme(bits=3), "weight"),
    "s3 weight unit per-channel": (N2uq(unit_gradient=True), Scheme(bits=3, granularity=CHANNELS), "weight"),
    "s4 weight 2^n": (N2uq(), Scheme(bits=4, scale=PowerOfTwo()), "weight"),
}


def expected(quantizer: N2uqQuantizer, x: Tensor, upstream: Tensor) -> dict[str, Tensor]:
    w, bits = x.numpy(), quantizer.scheme.bits
    shared = (1, 2) if quantizer.scheme.granularity == CHANNELS else (0, 1, 2)
    steps = 2**bits - 1
    scaling = steps / 2 ** (bits - 1) * np.abs(w).mean(shared, keepdims=True)
    if isinstance(quantizer.scheme.scale, PowerOfTwo):
        scaling = steps * 2.0 ** np.round(np.log2(scaling / steps))
    clipped = np.clip(w / scaling, -1, 1)
    output = scaling * (np.round((clipped + 1) * (steps / 2)) / (steps / 2) - 1)
    gradient = upstream / torch.from_numpy(scaling) if quantizer.unit_gradient else upstream
    return {"output": torch.from_numpy(output), "x": gradient}
