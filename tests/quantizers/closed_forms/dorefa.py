"""DoReFa-Net by the equations of arXiv:1606.06160, in float64, one plain operation at a time."""

import numpy as np
import torch
from torch import Tensor, nn

from isobit.core.granularity import PerChannel, PerTensor
from isobit.core.scheme import PowerOfTwo, Scheme
from isobit.quantizers.dorefa import DoReFa
from isobit.quantizers.protocol import QuantizerSettings, Role

CASES: dict[str, tuple[QuantizerSettings, Scheme, Role]] = {
    "weights of 1 bit": (DoReFa(), Scheme(bits=1), "weight"),
    "weights of 1 bit per channel": (DoReFa(), Scheme(bits=1, granularity=PerChannel(0)), "weight"),
    "weights of 2 bits": (DoReFa(), Scheme(bits=2), "weight"),
    "weights of 4 bits": (DoReFa(), Scheme(bits=4), "weight"),
    "weights of 4 bits per channel": (DoReFa(), Scheme(bits=4, granularity=PerChannel(0)), "weight"),
    "weights of 4 bits with 0": (DoReFa(zero_level=True), Scheme(bits=4), "weight"),
    "weights of 4 bits in their own range": (DoReFa(unit_range=False), Scheme(bits=4), "weight"),
    "weights of 4 bits, powers of two": (DoReFa(unit_range=False), Scheme(bits=4, scale=PowerOfTwo()), "weight"),
    "weights of 8 bits, powers of two": (DoReFa(unit_range=False), Scheme(bits=8, scale=PowerOfTwo()), "weight"),
    "weights of 8 bits per channel": (DoReFa(), Scheme(bits=8, granularity=PerChannel(0)), "weight"),
    "weights of 8 bits asymmetric": (DoReFa(), Scheme(bits=8, signed=False, symmetric=False), "weight"),
    "activations of 2 bits": (DoReFa(), Scheme(bits=2, signed=False), "activation"),
    "activations of 4 bits": (DoReFa(), Scheme(bits=4, signed=False), "activation"),
    "activations of 4 bits signed": (DoReFa(), Scheme(bits=4), "activation"),
    "activations of 8 bits": (DoReFa(), Scheme(bits=8, signed=False), "activation"),
}


def expected(quantizer: nn.Module, x: Tensor, upstream: Tensor) -> dict[str, Tensor]:
    """The output and the gradient to x; nothing is learned."""
    scheme: Scheme = quantizer.scheme  # type: ignore[assignment]
    values = x.detach().numpy().astype(np.float64)
    grad = upstream.detach().numpy().astype(np.float64)
    if "Activation" in type(quantizer).__name__:
        output, grad_x = activation(values, grad, scheme)
    elif scheme.bits == 1:
        magnitude = _per_scale(np.abs(values), scheme, np.mean)
        output, grad_x = np.where(values >= 0, 1.0, -1.0) * _float32(magnitude), grad
    else:
        output, grad_x = weight(values, grad, scheme, unit_range=quantizer.unit_range)  # type: ignore[arg-type]
    return {"output": torch.from_numpy(output), "x": torch.from_numpy(grad_x)}


def activation(x: np.ndarray, grad: np.ndarray, scheme: Scheme) -> tuple[np.ndarray, np.ndarray]:
    """quantize_b(clip(x, 0, 1)); a signed format has 2^(b-1) steps below 0 and one fewer above."""
    steps = 2 ** (scheme.bits - 1) - 1 if scheme.signed else 2**scheme.bits - 1
    lowest = -(steps + 1) if scheme.signed else 0
    step = _float32(1 / steps)
    return np.clip(np.round(x / step), lowest, steps) * step, grad * ((x / step > lowest) & (x / step < steps))


def weight(w: np.ndarray, grad: np.ndarray, scheme: Scheme, *, unit_range: bool) -> tuple[np.ndarray, np.ndarray]:
    """Equation 9 and its derivative: that of tanh(w) / max|tanh(w)| also by the largest weight itself."""
    squashed = np.tanh(w)
    where = np.unravel_index(np.abs(squashed).argmax(), w.shape)
    largest = abs(squashed[where])
    x = squashed / largest if unit_range else squashed
    grad_squashed = grad / largest if unit_range else grad.copy()
    if unit_range:
        grad_squashed[where] -= (grad * squashed).sum() / largest**2 * np.sign(squashed[where])
    levels = 2**scheme.bits - 1
    bound = _per_scale(np.abs(x), scheme, np.max)
    if not scheme.symmetric:
        low, high = min(x.min(), 0.0), max(x.max(), 0.0)
        step = _float32((high - low) / levels)
        zero = np.round(-low / step)
        output = (np.clip(np.round(x / step) + zero, 0, levels) - zero) * step
    elif type(scheme.grid).__name__ == "MidRise":
        half_step = _float32(_step(bound / levels, scheme))
        r = np.round((x / half_step + levels) / 2)
        output = (2 * np.clip(r, 0, levels) - levels) * half_step
    else:
        highest = 2 ** (scheme.bits - 1) - 1
        step = _float32(_step(bound / highest, scheme))
        output = np.clip(np.round(x / step), -highest - 1, highest) * step
    return output, grad_squashed * (1 - squashed**2)


def _step(step: np.ndarray, scheme: Scheme) -> np.ndarray:
    """As it is, or the power of two that is nearest in the logarithm."""
    return 2.0 ** np.round(np.log2(step)) if isinstance(scheme.scale, PowerOfTwo) else step


def _per_scale(values: np.ndarray, scheme: Scheme, reduce: np.ufunc) -> np.ndarray:
    if isinstance(scheme.granularity, PerTensor):
        return np.asarray(reduce(values))
    shape = (values.shape[0], *[1] * (values.ndim - 1))
    return reduce(values.reshape(values.shape[0], -1), axis=1).reshape(shape)


def _float32(scale: np.ndarray | float) -> np.ndarray:
    """A scale is stored in float32."""
    return np.asarray(scale, dtype=np.float32).astype(np.float64)
