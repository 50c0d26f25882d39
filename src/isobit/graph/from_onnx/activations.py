"""Activations: they become modules of torch.nn, so that they have names and fuse with the layer before them."""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from isobit.core.errors import UnsupportedError
from isobit.graph.from_onnx.builder import Builder, dtype_of, rank
from isobit.graph.from_onnx.op import Op
from isobit.graph.from_onnx.values import Size, Value, numbers

_Make = Callable[[Op], nn.Module]


def _module(make: _Make) -> Callable[[Builder, Op], Value]:
    def build(b: Builder, op: Op) -> Value:
        return b.layer(op, make(op), op.needed(0))

    return build


def _plain(kind: type[nn.Module]) -> Callable[[Builder, Op], Value]:
    return _module(lambda _op: kind())


def hard_sigmoid(b: Builder, op: Op) -> Value:
    """max(0, min(1, α x + β)); torch's own has α = 1/6 and β = 1/2."""
    x = op.needed(0)
    alpha, beta = float(op.number("alpha", 0.2)), float(op.number("beta", 0.5))
    if abs(alpha - 1 / 6) < 1e-7 and beta == 0.5:
        return b.layer(op, nn.Hardsigmoid(), x)
    line = b.call(torch.add, b.call(torch.mul, x, alpha), beta)
    return b.call(torch.clamp, line, 0.0, 1.0)


def softmax(b: Builder, op: Op) -> Value:
    """Softmax along one axis."""
    axis = int(op.number("axis", -1))
    return b.layer(op, nn.Softmax(axis), op.needed(0))


def clip(b: Builder, op: Op) -> Value:
    """Clip: between 0 and 6 it is ReLU6, from 0 on ReLU."""
    x = op.needed(0)
    low, high = (_limit(op.input(i)) for i in (1, 2))
    if isinstance(low, (Tensor, fx.Node)) or isinstance(high, (Tensor, fx.Node)):
        x = x if low is None else b.call(torch.maximum, x, op.needed(1))
        return x if high is None else b.call(torch.minimum, x, op.needed(2))
    if isinstance(x, fx.Node) and dtype_of(x).is_floating_point and low == 0:
        if high == 6:
            return b.layer(op, nn.ReLU6(), x)
        if high is None or high >= torch.finfo(torch.float32).max:
            return b.layer(op, nn.ReLU(), x)
    if low is None and high is None:
        return x
    return b.call(torch.clamp, x, low, high)


def _limit(value: Value | None) -> float | Value | None:
    if value is None or isinstance(value, fx.Node):
        return value
    (found,) = numbers(value)
    if isinstance(found, Size):
        raise UnsupportedError("it clips at a size that the file leaves free")
    return float(found) if isinstance(value, Tensor) and value.is_floating_point() else int(found)


def gelu(b: Builder, op: Op) -> Value:
    """x · Φ(x), exact or by tanh."""
    return b.layer(op, nn.GELU(approximate=op.text("approximate", "none")), op.needed(0))


def swish(b: Builder, op: Op) -> Value:
    """x · sigmoid(α x)."""
    x, alpha = op.needed(0), float(op.number("alpha", 1.0))
    if alpha == 1:
        return b.layer(op, nn.SiLU(), x)
    return b.call(torch.mul, x, b.call(torch.sigmoid, b.call(torch.mul, x, alpha)))


def selu(b: Builder, op: Op) -> Value:
    """γ (max(0, x) + min(0, α (exp(x) - 1))); torch has its own constants only."""
    x = op.needed(0)
    alpha, gamma = float(op.number("alpha", 1.67326319217681884765625)), float(op.number("gamma", 1.05070102214813232))
    if abs(alpha - 1.6732632) < 1e-6 and abs(gamma - 1.050701) < 1e-6:
        return b.layer(op, nn.SELU(), x)
    return b.call(torch.mul, b.call(F.elu, x, alpha), gamma)


def attention(b: Builder, op: Op) -> Value:
    """Attention of opset 23: four dimensions (batch, heads, length, size), or three with the heads in the last one."""
    query, key, value, mask = op.needed(0), op.needed(1), op.needed(2), op.input(3)
    softcap, mode = op.number("softcap", 0.0), op.number("qk_matmul_output_mode", 0)
    if op.input(4) is not None or op.input(5) is not None or any(op.outputs[1:]) or softcap or mode:
        raise UnsupportedError("of Attention only query, key, value and mask are supported")
    heads = (op.number("q_num_heads"), op.number("kv_num_heads"), op.number("kv_num_heads"))
    flat = rank(query) == 3
    if flat:
        query, key, value = (
            b.call(torch.transpose, b.method("reshape", x, (*b.shape(x)[:2], int(n or 0), -1)), 1, 2)
            for x, n in zip((query, key, value), heads, strict=True)
        )
    scale = op.number("scale")
    grouped = b.size(query, 1) != b.size(key, 1)
    out = b.call(
        F.scaled_dot_product_attention, query, key, value, attn_mask=mask, dropout_p=0.0,
        is_causal=op.flag("is_causal"), scale=None if scale is None else float(scale), enable_gqa=bool(grouped),
    )  # fmt: skip
    if not flat:
        return out
    return b.call(torch.flatten, b.call(torch.transpose, out, 1, 2), 2)


OPS: Mapping[str, Callable[[Builder, Op], Value]] = {
    "Relu": _plain(nn.ReLU),
    "LeakyRelu": _module(lambda op: nn.LeakyReLU(float(op.number("alpha", 0.01)))),
    "Sigmoid": _plain(nn.Sigmoid),
    "Tanh": _plain(nn.Tanh),
    "HardSwish": _plain(nn.Hardswish),
    "HardSigmoid": hard_sigmoid,
    "Elu": _module(lambda op: nn.ELU(float(op.number("alpha", 1.0)))),
    "Celu": _module(lambda op: nn.CELU(float(op.number("alpha", 1.0)))),
    "Selu": selu,
    "Softplus": _plain(nn.Softplus),
    "Softsign": _plain(nn.Softsign),
    "Mish": _plain(nn.Mish),
    "Gelu": gelu,
    "Swish": swish,
    "Softmax": softmax,
    "LogSoftmax": _module(lambda op: nn.LogSoftmax(int(op.number("axis", -1)))),
    "Clip": clip,
    "Attention": attention,
}
"""Activations, softmax and attention."""
