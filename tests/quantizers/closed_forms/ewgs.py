"""EWGS as section 3 of its paper writes it: x normalised to [0, 1], rounded, and the gradient to x_n scaled."""

import torch
from torch import Tensor

from isobit.core.granularity import PerChannel
from isobit.core.grid import MidRise
from isobit.core.scheme import PowerOfTwo, Scheme
from isobit.quantizers.ewgs import Ewgs, EwgsQuantizer
from isobit.quantizers.protocol import QuantizerSettings, Role

CASES: dict[str, tuple[QuantizerSettings, Scheme, Role]] = {
    "s1 weight": (Ewgs(delta=0.1), Scheme(bits=1), "weight"),
    "s4 weight": (Ewgs(delta=0.5), Scheme(bits=4), "weight"),
    "s2 weight per-channel": (Ewgs(delta=0.2), Scheme(bits=2, granularity=PerChannel(0)), "weight"),
    "s3 weight 2^n": (Ewgs(delta=0.2), Scheme(bits=3, scale=PowerOfTwo()), "weight"),
    "s8 weight": (Ewgs(delta=2.0), Scheme(), "weight"),
    "s4 weight on integers, narrow": (Ewgs(delta=0.3, mid_rise=False), Scheme(bits=4, narrow=True), "weight"),
    "u1": (Ewgs(delta=0.4), Scheme(bits=1, signed=False), "activation"),
    "u4": (Ewgs(delta=0.4), Scheme(bits=4, signed=False), "activation"),
    "s4": (Ewgs(delta=0.4), Scheme(bits=4), "activation"),
    "u4, delta 0": (Ewgs(delta=0.0), Scheme(bits=4, signed=False), "activation"),
    "u8 asymmetric": (Ewgs(), Scheme(signed=False, symmetric=False), "activation"),
    "s3 asymmetric per-channel": (
        Ewgs(delta=0.7),
        Scheme(bits=3, symmetric=False, granularity=PerChannel(1)),
        "activation",
    ),
    "u3 asymmetric 2^n": (
        Ewgs(delta=0.7),
        Scheme(bits=3, signed=False, symmetric=False, scale=PowerOfTwo()),
        "activation",
    ),
}


def expected(quantizer: EwgsQuantizer, x: Tensor, upstream: Tensor) -> dict[str, Tensor]:
    scheme, delta = quantizer.scheme, quantizer.delta.double()
    n, p, steps = scheme.quant_min, scheme.quant_max, len(scheme.levels) - 1
    axis = scheme.granularity.axis if isinstance(scheme.granularity, PerChannel) else None
    shape = [1] * x.dim()
    if axis is not None:
        shape[axis] = -1
    reduced = [d for d in range(x.dim()) if d != axis]
    state = {name: p.detach().double().reshape(shape) for name, p in quantizer.named_parameters()}

    def rounded(scale: Tensor) -> Tensor:
        return 2.0 ** scale.log2().round() if isinstance(scheme.scale, PowerOfTwo) else scale

    u, share = state["upper"], n / p
    l = state.get("lower", share * u)  # noqa: E741  the paper's name
    width = steps * rounded((u - l) / steps)
    if isinstance(scheme.grid, MidRise):
        l = (u + l) / 2 - width / 2  # noqa: E741
    elif "lower" in state:
        l = (n - (n - l * steps / width).round().clamp(n, p)) * width / steps  # noqa: E741
    else:
        l = n * width / steps  # noqa: E741

    x_n = ((x - l) / width).clamp(0, 1)
    x_q = (x_n * steps).round() / steps
    inside = (x >= l) & (x <= l + width)
    found = {}
    if "output_scale" in state:
        o = state["output_scale"].abs()
        o = p * rounded(o / p)
        share_of_o = 2 * x_q - 1 if isinstance(scheme.grid, MidRise) else (n + steps * x_q) / p
        output, per_level = o * share_of_o, o * (2 if isinstance(scheme.grid, MidRise) else steps / p)
        found["output_scale"] = upstream * share_of_o * state["output_scale"].sign()
        direct_upper = direct_lower = torch.zeros_like(x)
    else:
        output, per_level = l + width * x_q, width
        direct_upper, direct_lower = upstream * x_q, upstream * (1 - x_q)
    to_x_q = upstream * per_level
    to_x_n = to_x_q * (1 + delta * to_x_q.sign() * (x_n - x_q)) * inside
    upper = direct_upper - to_x_n * x_n / width
    lower = direct_lower + to_x_n * (x_n - 1) / width
    found |= {"upper": upper, "lower": lower} if "lower" in state else {"upper": upper + share * lower}
    found = {name: grad.sum(reduced).reshape(quantizer.upper.shape) for name, grad in found.items()}
    return {"output": output, "x": to_x_n / width} | found
