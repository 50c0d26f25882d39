"""IR-Net as its paper writes it: Libra-PB and the error decay estimator."""

import torch
from torch import Tensor

from isobit.core.granularity import PerChannel
from isobit.core.scheme import Scheme
from isobit.quantizers.ir_net import IrNet, IrNetQuantizer
from isobit.quantizers.protocol import QuantizerSettings, Role

CASES: dict[str, tuple[QuantizerSettings, Scheme, Role]] = {
    "s1 weight": (IrNet(), Scheme(bits=1), "weight"),
    "s1 weight per-channel": (IrNet(), Scheme(bits=1, granularity=PerChannel(0)), "weight"),
    "s1 weight per-channel, sharp": (IrNet(softest=3.0), Scheme(bits=1, granularity=PerChannel(0)), "weight"),
    "s1": (IrNet(), Scheme(bits=1), "activation"),
    "s1 adapt": (IrNet(), Scheme(bits=1, adapt_sign=True), "activation"),
    "s1, sharp": (IrNet(softest=3.0), Scheme(bits=1), "activation"),
}


def expected(quantizer: IrNetQuantizer, x: Tensor, upstream: Tensor) -> dict[str, Tensor]:
    t = float(quantizer.t)
    k = max(1 / t, 1.0)
    if quantizer.role == "activation":
        sign = torch.where(x >= 0, 1.0, -1.0).to(x.dtype)
        return {"output": sign, "x": upstream * k * t * (1 - torch.tanh(t * x) ** 2)}
    shared = [d for d in range(x.dim()) if not isinstance(quantizer.scheme.granularity, PerChannel) or d != 0]
    n = x.numel() // (x.shape[0] if 0 not in shared else 1)
    centred = x - x.sum(shared, keepdim=True) / n
    deviation = ((centred**2).sum(shared, keepdim=True) / (n - 1)) ** 0.5
    w = centred / deviation
    size = 2.0 ** torch.log2(w.abs().sum(shared, keepdim=True) / n).round()
    inner = upstream * size * k * t * (1 - torch.tanh(t * w) ** 2)
    along = (inner * w).sum(shared, keepdim=True) / (n - 1)
    to_x = (inner - inner.sum(shared, keepdim=True) / n - w * along) / deviation
    return {"output": size * torch.where(w >= 0, 1.0, -1.0).to(x.dtype), "x": to_x}
