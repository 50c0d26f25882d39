"""ABC-Net as its paper writes it: the bases, and their scales by a general solver of least squares."""

import numpy as np
import torch
from torch import Tensor

from isobit.core.scheme import Scheme
from isobit.quantizers.abc_net import AbcNet, AbcNetQuantizer
from isobit.quantizers.protocol import QuantizerSettings, Role

CASES: dict[str, tuple[QuantizerSettings, Scheme, Role]] = {
    **{f"s{bits} weight": (AbcNet(), Scheme(bits=bits), "weight") for bits in (1, 2, 3, 4, 5, 6, 8)},
    **{f"s{bits} weight, sum": (AbcNet(gradient="sum"), Scheme(bits=bits), "weight") for bits in (1, 3, 5)},
}


def expected(quantizer: AbcNetQuantizer, x: Tensor, upstream: Tensor) -> dict[str, Tensor]:
    w = x.numpy().ravel()
    count = quantizer.scheme.bits
    u = np.zeros(1) if count == 1 else np.linspace(-1, 1, count)
    bases = np.where(w[:, None] - w.mean() + u * w.std() >= 0, 1.0, -1.0)
    alpha = np.linalg.lstsq(bases, w, rcond=None)[0]
    factor = alpha.sum() if quantizer.gradient == "sum" else 1.0
    return {"output": torch.from_numpy(bases @ alpha).reshape(x.shape), "x": upstream * factor}
