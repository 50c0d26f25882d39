"""LCQ as its paper writes it: the compressing function interval by interval, and the chain rule to θ by hand."""

import numpy as np
import torch
from torch import Tensor

from isobit.core.granularity import PerChannel
from isobit.core.scheme import Scheme
from isobit.quantizers.lcq import Lcq, LcqQuantizer
from isobit.quantizers.protocol import QuantizerSettings, Role

CASES: dict[str, tuple[QuantizerSettings, Scheme, Role]] = {
    **{f"s{bits} weight": (Lcq(alpha=1.5), Scheme(bits=bits), "weight") for bits in (2, 3, 4, 5, 8)},
    "s4 weight, 5 intervals": (Lcq(alpha=1.5, intervals=5), Scheme(bits=4), "weight"),
    "s4 weight as it is": (Lcq(normalise_weights=False), Scheme(bits=4), "weight"),
    "s4 weight per-channel": (Lcq(alpha=1.5), Scheme(bits=4, granularity=PerChannel(0)), "weight"),
}


def expected(quantizer: LcqQuantizer, x: Tensor, upstream: Tensor) -> dict[str, Tensor]:
    w, g = x.numpy(), upstream.numpy()
    shared = (1, 2) if isinstance(quantizer.scheme.granularity, PerChannel) else (0, 1, 2)
    sigma = np.std(w, axis=shared, keepdims=True) if quantizer.settings.normalise_weights else 1.0
    learned = quantizer.alpha.detach().numpy()
    alpha = learned.reshape(-1, 1, 1)
    s = 2 ** (quantizer.scheme.bits - 1) - 1
    theta = np.zeros(1) if quantizer.theta is None else quantizer.theta.detach().numpy()
    v = np.abs(w) / (sigma * alpha)
    inside = v < 1
    level, to_theta = compand(np.where(inside, v, 1.0), s, theta)
    slope = np.sign(w) * np.where(inside, level - v, 1.0)
    found = {
        "output": torch.from_numpy(sigma * alpha * np.sign(w) * level),
        "x": torch.from_numpy(g * inside),
        "alpha": torch.from_numpy(np.asarray((g * sigma * slope).sum(shared).reshape(learned.shape))),
    }
    if quantizer.theta is not None:
        weight = g * sigma * alpha * np.sign(w) * inside
        found["theta"] = torch.from_numpy((weight[..., None] * to_theta).sum((0, 1, 2)))
    return found


def compand(v: np.ndarray, s: int, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """f⁻¹(round(s f(v)) / s), and its derivatives to θ, one in each place of a last axis."""
    count = len(theta)
    d = np.arange(count) / count
    p = np.exp(theta) / np.exp(theta).sum()
    gamma, beta = count * p, np.concatenate([[0.0], p.cumsum()[:-1]])
    at = np.minimum(np.searchsorted(d, v, side="right") - 1, count - 1)
    q = np.round(s * (gamma[at] * (v - d[at]) + beta[at])) / s
    to = np.searchsorted(beta, q, side="right") - 1
    level = (q - beta[to]) / gamma[to] + d[to]
    one = np.eye(count)
    to_gamma = (one[at] * (v - d[at])[..., None] - one[to] * ((q - beta[to]) / gamma[to])[..., None]) / gamma[to][
        ..., None
    ]
    to_beta = (one[at] - one[to]) / gamma[to][..., None]
    softmax = np.diag(p) - np.outer(p, p)
    cumulative = np.tril(np.ones((count, count)), -1)
    return level, to_gamma @ (count * softmax) + to_beta @ (cumulative @ softmax)
