"""QIL by the equations of arXiv:1808.05779, in float64, one plain operation at a time."""

import numpy as np
import torch
from torch import Tensor, nn

from isobit.core.granularity import PerChannel, PerTensor
from isobit.core.scheme import PowerOfTwo, Scheme
from isobit.quantizers.protocol import QuantizerSettings, Role
from isobit.quantizers.qil import Qil

CASES: dict[str, tuple[QuantizerSettings, Scheme, Role]] = {
    "weights of 2 bits": (Qil(), Scheme(bits=2), "weight"),
    "weights of 4 bits": (Qil(), Scheme(bits=4), "weight"),
    "weights of 4 bits with gamma": (Qil(learn_gamma=True), Scheme(bits=4), "weight"),
    "weights of 4 bits per channel": (Qil(), Scheme(bits=4, granularity=PerChannel(0)), "weight"),
    "weights of 8 bits": (Qil(), Scheme(bits=8), "weight"),
    "weights of 4 bits damped": (Qil(damp=True, learning_rate_scale=None), Scheme(bits=4), "weight"),
    "activations of 2 bits": (Qil(), Scheme(bits=2, signed=False), "activation"),
    "activations of 4 bits": (Qil(), Scheme(bits=4, signed=False), "activation"),
    "activations of 2 bits pruned": (Qil(prune=True), Scheme(bits=2, signed=False), "activation"),
    "activations of 4 bits pruned": (Qil(prune=True), Scheme(bits=4, signed=False), "activation"),
    "activations of 4 bits signed": (Qil(), Scheme(bits=4), "activation"),
    "activations of 8 bits asymmetric": (Qil(), Scheme(symmetric=False), "activation"),
    "activations of 4 bits pruned 2^n": (
        Qil(prune=True),
        Scheme(bits=4, signed=False, scale=PowerOfTwo()),
        "activation",
    ),
    "activations of 4 bits pruned and damped": (
        Qil(prune=True, damp=True, learning_rate_scale=None),
        Scheme(bits=4, signed=False),
        "activation",
    ),
}


def expected(quantizer: nn.Module, x: Tensor, upstream: Tensor) -> dict[str, Tensor]:
    """The output; the gradients to x, c, d and, where it is learned, γ."""
    scheme: Scheme = quantizer.scheme  # type: ignore[assignment]
    learned = {name: p.detach().numpy().astype(np.float64) for name, p in quantizer.named_parameters()}
    values, grad = x.detach().numpy(), upstream.detach().numpy()
    is_weight = "Weight" in type(quantizer).__name__
    found = (weight if is_weight else activation)(values, grad, learned, scheme)
    if quantizer.damp:
        count = values.size if is_weight else values[0].size
        g = 1 / np.sqrt(count // learned["center"].size * scheme.quant_max)
        found |= {name: found[name] * g for name in ("center", "distance")}
    return {name: torch.from_numpy(np.asarray(value)) for name, value in found.items()}


def weight(w: np.ndarray, grad: np.ndarray, learned: dict[str, np.ndarray], scheme: Scheme) -> dict[str, np.ndarray]:
    """The transformer, its discretizer on 2^(b-1) - 1 steps, and its three derivatives."""
    shape = [-1, *[1] * (w.ndim - 1)] if isinstance(scheme.granularity, PerChannel) else []
    c, d = (learned[name].reshape(shape) for name in ("center", "distance"))
    gamma = float(learned.get("gamma", np.ones(())))
    steps = 2 ** (scheme.bits - 1) - 1
    a, b = 1 / (2 * d), 0.5 - c / (2 * d)
    inside = (np.abs(w) > c - d) & (np.abs(w) < c + d)
    base = np.where(inside, a * np.abs(w) + b, 1.0)
    transformed = np.where(inside, base**gamma, np.abs(w) >= c + d) * np.sign(w)
    slope = inside * gamma * base ** (gamma - 1)
    found = {
        "output": np.round(transformed * steps) / steps,
        "x": grad * slope * a,
        "center": _sum(grad * slope * -a * np.sign(w), scheme),
        "distance": _sum(grad * slope * -(np.abs(w) - c) / (2 * d**2) * np.sign(w), scheme),
    }
    if "gamma" in learned:
        found["gamma"] = (grad * inside * base**gamma * np.log(base) * np.sign(w)).sum()
    return found


def activation(
    x: np.ndarray, grad: np.ndarray, learned: dict[str, np.ndarray], scheme: Scheme
) -> dict[str, np.ndarray]:
    """2d x̄ + p with p = c - d on a multiple of the step; without zero point p = 0, and c + d in place of 2d."""
    c, d = learned["center"], learned["distance"]
    if scheme.symmetric:
        steps, lowest = scheme.quant_max, scheme.quant_min
        step = (c + d) / steps
        inside = (x / step > lowest) & (x / step < steps)
        output = step * np.clip(np.round(x / step), lowest, steps)
        slope = np.where(inside, (output - x) / (c + d), np.where(x > 0, 1.0, lowest / steps))
        to_both = (grad * slope).sum()
        return {"output": output, "x": grad * inside, "center": to_both, "distance": to_both}
    steps = 2**scheme.bits - 1
    length = 2 * d
    if isinstance(scheme.scale, PowerOfTwo):
        length = steps * 2.0 ** np.round(np.log2(length / steps))
    step = length / steps
    p = np.round((c - d) / step) * step
    transformed = np.clip((x - p) / length, 0, 1)
    quantized = np.round(transformed * steps) / steps
    above, below = x >= p + length, x <= p
    return {
        "output": length * quantized + p,
        "x": grad * (~above & ~below),
        "center": (grad * (above | below)).sum(),
        "distance": (grad * np.where(above, 1, np.where(below, -1, 2 * (quantized - transformed)))).sum(),
    }


def _sum(grad: np.ndarray, scheme: Scheme) -> np.ndarray:
    return grad.sum() if isinstance(scheme.granularity, PerTensor) else grad.reshape(grad.shape[0], -1).sum(1)
