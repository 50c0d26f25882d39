"""TWN as its paper writes it: equations 3 to 6."""

import torch
from torch import Tensor

from isobit.core.granularity import PerChannel
from isobit.core.scheme import PowerOfTwo, Scheme
from isobit.quantizers.protocol import QuantizerSettings, Role
from isobit.quantizers.twn import Twn, TwnQuantizer

CASES: dict[str, tuple[QuantizerSettings, Scheme, Role]] = {
    "s2 weight": (Twn(), Scheme(bits=2), "weight"),
    "s2 weight narrow": (Twn(threshold=0.75), Scheme(bits=2, narrow=True), "weight"),
    "s2 weight per-channel": (Twn(), Scheme(bits=2, granularity=PerChannel(0)), "weight"),
    "s2 weight 2^n": (Twn(), Scheme(bits=2, scale=PowerOfTwo()), "weight"),
}


def expected(quantizer: TwnQuantizer, x: Tensor, upstream: Tensor) -> dict[str, Tensor]:
    rows = x.reshape(x.shape[0], -1) if isinstance(quantizer.scheme.granularity, PerChannel) else x.reshape(1, -1)
    output = torch.zeros_like(rows)
    for i, row in enumerate(rows):
        kept = row.abs() > quantizer.threshold * row.abs().sum() / row.numel()
        alpha = row[kept].abs().sum() / kept.sum()
        if isinstance(quantizer.scheme.scale, PowerOfTwo):
            alpha = 2.0 ** alpha.log2().round()
        output[i][kept] = alpha * row[kept].sign()
    return {"output": output.reshape(x.shape), "x": upstream}
