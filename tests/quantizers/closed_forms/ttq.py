"""TTQ as its paper writes it: equations 6 to 9."""

import torch
from torch import Tensor

from isobit.core.scheme import Scheme
from isobit.quantizers.protocol import QuantizerSettings, Role
from isobit.quantizers.ttq import Ttq, TtqQuantizer

CASES: dict[str, tuple[QuantizerSettings, Scheme, Role]] = {
    "s2 weight": (Ttq(), Scheme(bits=2), "weight"),
    "s2 weight, sparse": (Ttq(threshold=0.4), Scheme(bits=2), "weight"),
}


def expected(quantizer: TtqQuantizer, x: Tensor, upstream: Tensor) -> dict[str, Tensor]:
    positive, negative = quantizer.positive.detach(), quantizer.negative.detach()
    delta = quantizer.threshold * x.abs().max()
    output, to_x = torch.zeros_like(x), upstream.clone()
    above, below = x > delta, x < -delta
    output[above], output[below] = positive, -negative
    to_x[above] *= positive
    to_x[below] *= negative
    return {"output": output, "x": to_x, "positive": upstream[above].sum(), "negative": -upstream[below].sum()}
