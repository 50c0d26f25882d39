"""SAWB by the equations of arXiv:1807.06964, in float64, one plain operation at a time."""

import numpy as np
import torch
from torch import Tensor, nn

from isobit.core.granularity import PerChannel, PerTensor
from isobit.core.scheme import Scheme
from isobit.quantizers.protocol import QuantizerSettings, Role
from isobit.quantizers.sawb import Sawb

CASES: dict[str, tuple[QuantizerSettings, Scheme, Role]] = {
    "weights of 2 bits": (Sawb(), Scheme(bits=2), "weight"),
    "weights of 2 bits with 0": (Sawb(zero_level=True), Scheme(bits=2), "weight"),
    "weights of 3 bits per channel": (Sawb(), Scheme(bits=3, granularity=PerChannel(0)), "weight"),
    "weights of 4 bits": (Sawb(), Scheme(bits=4), "weight"),
    "weights of 4 bits narrow": (Sawb(), Scheme(bits=4, narrow=True), "weight"),
    "weights of 5 bits": (Sawb(), Scheme(bits=5), "weight"),
    "weights of 7 bits": (Sawb(), Scheme(bits=7), "weight"),
    "weights of 8 bits per channel": (Sawb(), Scheme(bits=8, granularity=PerChannel(0)), "weight"),
}

PUBLISHED = {
    (2, "none"): (3.12, -2.064),
    (3, "none"): (7.509, -6.892),
    (4, "none"): (12.68, -12.80),
    (5, "none"): (17.74, -18.64),
    (2, "zero"): (2.6, -1.71),
    (4, "zero"): (12.035, -12.03),
    (7, "zero"): (28.24, -30.81),
    (8, "zero"): (31.76, -35.04),
}


def expected(quantizer: nn.Module, x: Tensor, upstream: Tensor) -> dict[str, Tensor]:
    """The output and the gradient to the weights, in training; nothing is learned."""
    scheme: Scheme = quantizer.scheme  # type: ignore[assignment]
    with_zero = type(scheme.grid).__name__ == "Uniform"
    rms, mean_abs = PUBLISHED[scheme.bits, "zero" if with_zero else "none"]
    w, grad = x.detach().numpy(), upstream.detach().numpy()
    axes = None if isinstance(scheme.granularity, PerTensor) else tuple(range(1, w.ndim))
    alpha = rms * np.sqrt((w**2).mean(axes, keepdims=True)) + mean_abs * np.abs(w).mean(axes, keepdims=True)
    if with_zero:
        steps = 2 ** (scheme.bits - 1) - 1
        alpha = steps * (alpha / steps).astype(np.float32).astype(np.float64)
        output = alpha * np.round(np.clip(w / alpha, -1, 1) * steps) / steps
    else:
        steps = 2**scheme.bits - 1
        alpha = steps * (alpha / steps).astype(np.float32).astype(np.float64)
        r = np.clip(w / alpha, -1, 1) / 2 + 0.5
        output = alpha * (2 * np.round(r * steps) / steps - 1)
    return {"output": torch.from_numpy(output), "x": torch.from_numpy(grad * (np.abs(w) < alpha))}
