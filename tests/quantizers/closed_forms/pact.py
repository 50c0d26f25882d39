"""PACT by the equations of arXiv:1805.06085, in float64, one plain operation at a time."""

import numpy as np
import torch
from torch import Tensor, nn

from isobit.core.granularity import PerChannel, PerTensor
from isobit.core.scheme import PowerOfTwo, Scheme
from isobit.quantizers.pact import Pact
from isobit.quantizers.protocol import QuantizerSettings, Role

CASES: dict[str, tuple[QuantizerSettings, Scheme, Role]] = {
    "activations of 2 bits": (Pact(), Scheme(bits=2, signed=False), "activation"),
    "activations of 4 bits": (Pact(), Scheme(bits=4, signed=False), "activation"),
    "activations of 8 bits": (Pact(), Scheme(bits=8, signed=False), "activation"),
    "activations of 4 bits signed": (Pact(), Scheme(bits=4), "activation"),
    "activations of 4 bits 2^n": (Pact(), Scheme(bits=4, signed=False, scale=PowerOfTwo()), "activation"),
    "activations of 8 bits asymmetric": (Pact(), Scheme(symmetric=False), "activation"),
    "weights of 2 bits narrow": (Pact(), Scheme(bits=2, narrow=True), "weight"),
    "weights of 4 bits": (Pact(), Scheme(bits=4), "weight"),
    "weights of 4 bits per channel": (Pact(), Scheme(bits=4, granularity=PerChannel(0)), "weight"),
    "weights of 8 bits asymmetric": (Pact(), Scheme(symmetric=False, granularity=PerChannel(0)), "weight"),
}


def expected(quantizer: nn.Module, x: Tensor, upstream: Tensor) -> dict[str, Tensor]:
    """The output; the gradients to x, to α and, where there is a zero point, to β."""
    scheme: Scheme = quantizer.scheme  # type: ignore[assignment]
    state = {name: value.detach().numpy().astype(np.float64) for name, value in quantizer.named_parameters()}
    values, grad = x.detach().numpy(), upstream.detach().numpy()
    lowest = -(2 ** (scheme.bits - 1)) + int(scheme.narrow) if scheme.signed else 0
    highest = lowest + 2**scheme.bits - 1 - int(scheme.narrow)
    alpha, beta = state["alpha"], state.get("beta", np.zeros_like(state["alpha"]))
    step = (alpha - beta) / (highest if scheme.symmetric else highest - lowest)
    if isinstance(scheme.scale, PowerOfTwo):
        step = 2.0 ** np.round(np.log2(step))
    step = step.astype(np.float32).astype(np.float64)
    zero = np.zeros_like(step) if scheme.symmetric else np.clip(np.round(lowest - beta / step), lowest, highest)

    shape = [-1, *[1] * (values.ndim - 1)] if isinstance(scheme.granularity, PerChannel) else []
    wide_step, wide_zero = step.reshape(shape), zero.reshape(shape)
    q = np.round(values / wide_step) + wide_zero
    above, below = values / wide_step + wide_zero >= highest, values / wide_step + wide_zero <= lowest
    grad_alpha = _sum(grad * above, scheme)
    if scheme.symmetric:
        grad_alpha = grad_alpha + _sum(grad * below, scheme) * lowest / highest
    found = {
        "output": (np.clip(q, lowest, highest) - wide_zero) * wide_step,
        "x": grad * (~above & ~below),
        "alpha": grad_alpha,
    }
    if not scheme.symmetric:
        found["beta"] = _sum(grad * below, scheme)
    return {name: torch.from_numpy(np.asarray(value)) for name, value in found.items()}


def _sum(grad: np.ndarray, scheme: Scheme) -> np.ndarray:
    return grad.sum() if isinstance(scheme.granularity, PerTensor) else grad.reshape(grad.shape[0], -1).sum(1)
