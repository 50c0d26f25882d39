"""DSQ as section 3 of its paper writes it: intervals P_i with middles m_i, φ and its derivatives, piece by piece."""

import torch
from torch import Tensor

from isobit.core.granularity import PerChannel
from isobit.core.scheme import PowerOfTwo, Scheme
from isobit.quantizers.dsq import Dsq, DsqQuantizer
from isobit.quantizers.protocol import QuantizerSettings, Role

CASES: dict[str, tuple[QuantizerSettings, Scheme, Role]] = {
    "s8 weight": (Dsq(), Scheme(), "weight"),
    "s4 weight, fixed alpha": (Dsq(alpha=0.4, learn_alpha=False), Scheme(bits=4), "weight"),
    "s3 weight narrow": (Dsq(), Scheme(bits=3, narrow=True), "weight"),
    "s2 weight per-channel": (Dsq(alpha=0.5), Scheme(bits=2, granularity=PerChannel(0)), "weight"),
    "s1 weight": (Dsq(), Scheme(bits=1), "weight"),
    "s4 weight 2^n": (Dsq(), Scheme(bits=4, scale=PowerOfTwo()), "weight"),
    "u4": (Dsq(), Scheme(bits=4, signed=False), "activation"),
    "u1": (Dsq(), Scheme(bits=1, signed=False), "activation"),
    "u8 asymmetric": (Dsq(), Scheme(signed=False, symmetric=False), "activation"),
    "u3 asymmetric 2^n": (Dsq(), Scheme(bits=3, signed=False, symmetric=False, scale=PowerOfTwo()), "activation"),
    "s2 asymmetric per-channel": (
        Dsq(alpha=0.1),
        Scheme(bits=2, symmetric=False, granularity=PerChannel(1)),
        "activation",
    ),
}


def expected(quantizer: DsqQuantizer, x: Tensor, upstream: Tensor) -> dict[str, Tensor]:
    scheme = quantizer.scheme
    state = {name: value.detach().double() for name, value in quantizer.state_dict().items()}
    axis = scheme.granularity.axis if isinstance(scheme.granularity, PerChannel) else None
    shape = [1] * x.dim()
    if axis is not None:
        shape[axis] = -1
    reduced = [d for d in range(x.dim()) if d != axis]

    steps, alpha = 2**scheme.bits - 1 - int(scheme.narrow), state["alpha"]
    share = scheme.quant_min / scheme.quant_max  # of u, what l is where it is tied to u
    u = state["upper"].reshape(shape)
    l = state["lower"].reshape(shape) if "lower" in state else share * u  # noqa: E741  the paper's name
    delta = (u - l) / steps
    if isinstance(scheme.scale, PowerOfTwo):
        delta = 2.0 ** delta.log2().round()
        l = share * delta * scheme.quant_max  # noqa: E741
    if "lower" in state:
        z = (scheme.quant_min - state["lower"].reshape(shape) / delta).round().clamp(scheme.quant_min, scheme.quant_max)
        l = (scheme.quant_min - z) * delta  # noqa: E741
    below, above = x < l, x > l + steps * delta

    i = ((x - l) / delta).floor().clamp(0, steps - 1)
    middle = l + (i + 0.5) * delta
    s, k = 1 / (1 - alpha), (2 / alpha - 1).log() / delta
    tanh = (k * (x - middle)).tanh()
    bell = 1 - tanh**2
    sign = torch.where(tanh >= 0, 1.0, -1.0)
    to_x = delta / 2 * s * k * bell
    to_delta = i + (sign + 1) / 2 + delta / 2 * s * bell * (-k / delta * (x - middle) - k * (i + 0.5))
    to_lower = torch.where(below, 1.0, torch.where(above, 0.0, 1 - to_x - to_delta / steps))
    to_upper = torch.where(above, 1.0, torch.where(below, 0.0, to_delta / steps))
    k_to_alpha = -2 / (alpha**2 * (2 / alpha - 1)) / delta
    to_alpha = delta / 2 * (tanh / (1 - alpha) ** 2 + s * bell * k_to_alpha * (x - middle))

    outside = below | above
    clipped = torch.where(below, l, l + steps * delta)
    found = {
        "output": torch.where(outside, clipped, l + delta * (i + (sign + 1) / 2)),
        "x": upstream * torch.where(outside, 0.0, to_x),
    }
    if "lower" in state:
        found["lower"] = (upstream * to_lower).sum(reduced).reshape(quantizer.upper.shape)
    else:
        to_upper = to_upper + share * to_lower
    found["upper"] = (upstream * to_upper).sum(reduced).reshape(quantizer.upper.shape)
    if "alpha" in dict(quantizer.named_parameters()):
        found["alpha"] = (upstream * torch.where(outside, 0.0, to_alpha)).sum()
    return found
