"""Small graphs, one for each rule of the reference. Each takes a fresh QdqGraph and finishes it."""

from collections.abc import Callable

import numpy as np

from integer.graphs import QdqGraph

Case = Callable[[QdqGraph], None]


def finish(g: QdqGraph, tensor: str, **quantizer: float) -> None:
    g.output(g.qdq(tensor, **quantizer))


def conv(g: QdqGraph) -> None:
    """Random strides, dilations, asymmetric pads, kernels, groups; per channel or per tensor; with bias or not."""
    r = g.rng
    x = g.qdq(g.input("batch", 6, 11, 9))
    pads = [int(v) for v in r.integers(0, 3, 4)]
    kernel = tuple(int(v) for v in r.integers(1, 4, 2))
    y = g.conv(
        x,
        6,
        12,
        kernel,
        group=int(r.choice([1, 2, 3, 6])),
        axis=0 if r.random() < 0.7 else None,
        bias=r.random() < 0.8,
        pads=pads,
        strides=[int(v) for v in r.integers(1, 3, 2)],
        dilations=[int(v) for v in r.integers(1, 3, 2)],
    )
    finish(g, y, scale=float(r.uniform(0.02, 0.3)))


def depthwise(g: QdqGraph) -> None:
    r = g.rng
    x = g.qdq(g.input("batch", 16, 10, 10))
    k = int(r.choice([3, 5]))
    stride = int(r.choice([1, 2]))
    finish(g, g.conv(x, 16, 16, (k, k), group=16, pads=[k // 2] * 4, strides=[stride] * 2))


def conv_1d(g: QdqGraph) -> None:
    finish(g, g.conv(g.qdq(g.input("batch", 5, 20)), 5, 7, (3,), pads=[1, 1]), scale=0.1)


def wide_conv(g: QdqGraph) -> None:
    """1,152 products of large weights: the accumulator passes 2^24, where float32 stops being exact."""
    x = g.qdq(g.input("batch", 128, 6, 6), scale=0.02)
    w, scale = g.weight((8, 128, 3, 3), low=100)
    bias = g.bias(x, scale, 8, size=30_000_000)
    finish(g, g.node("Conv", [x, w, bias], pads=[1, 1, 1, 1]), scale=3.0)


def conv_relu(g: QdqGraph) -> None:
    lowest = int(np.iinfo(g.dtype).min)
    x = g.qdq(g.input("batch", 3, 8, 8))
    finish(g, g.node("Relu", [g.conv(x, 3, 8)]), zero_point=lowest)


def conv_clip(g: QdqGraph) -> None:
    lowest = int(np.iinfo(g.dtype).min)
    x = g.qdq(g.input("batch", 3, 8, 8))
    limits = [g.constant("limit", np.float32(v)) for v in (0, 6)]
    finish(g, g.node("Clip", [g.conv(x, 3, 8), *limits]), scale=6 / 255, zero_point=lowest)


def add(g: QdqGraph) -> None:
    a, b = g.qdq(g.input("batch", 5, 7, 3)), g.qdq(g.input("batch", 5, 7, 3, name="y"))
    finish(g, g.node("Add", [a, b]))


def add_relu(g: QdqGraph) -> None:
    lowest = int(np.iinfo(g.dtype).min)
    a, b = g.qdq(g.input("batch", 5, 8, 8)), g.qdq(g.input("batch", 5, 8, 8, name="y"))
    finish(g, g.node("Relu", [g.node("Add", [a, b])]), zero_point=lowest)


def add_spread(g: QdqGraph) -> None:
    """One operand has one element where the other has a plane."""
    a, b = g.qdq(g.input("batch", 5, 7, 3)), g.qdq(g.input("batch", 5, 1, 1, name="y"))
    finish(g, g.node("Add", [a, b] if g.rng.random() < 0.5 else [b, a]))


def add_row(g: QdqGraph) -> None:
    a, b = g.qdq(g.input("batch", 4, 9)), g.qdq(g.input(1, 4, 9, name="y"))
    finish(g, g.node("Add", [a, b] if g.rng.random() < 0.5 else [b, a]))


def multiply(g: QdqGraph) -> None:
    a, b = g.qdq(g.input("batch", 5, 7, 3)), g.qdq(g.input("batch", 5, 7, 3, name="y"))
    finish(g, g.node("Mul", [a, b]))


def squeeze_and_excite(g: QdqGraph) -> None:
    x = g.qdq(g.input("batch", 8, 6, 6))
    s = g.qdq(g.node("GlobalAveragePool", [x]))
    gate = g.qdq(g.node("Sigmoid", [g.qdq(g.conv(s, 8, 8, (1, 1)))]), scale=1 / 255, zero_point=g.lowest)
    finish(g, g.node("Mul", [x, gate]))


def global_average(g: QdqGraph) -> None:
    side = int(g.rng.integers(2, 15))
    finish(g, g.node("GlobalAveragePool", [g.qdq(g.input("batch", 19, side, side))]))


def global_average_after_conv(g: QdqGraph) -> None:
    x = g.qdq(g.input("batch", 3, 7, 7))
    finish(g, g.node("GlobalAveragePool", [g.qdq(g.conv(x, 3, 24))]))


def average(g: QdqGraph) -> None:
    r = g.rng
    x = g.qdq(g.input("batch", 5, 9, 9))
    k = int(r.integers(2, 4))
    y = g.node(
        "AveragePool",
        [x],
        kernel_shape=[k, k],
        strides=[int(r.integers(1, 3))] * 2,
        pads=[int(v) for v in r.integers(0, 2, 4)],
        count_include_pad=int(r.integers(0, 2)),
    )
    finish(g, y)


def max_pool(g: QdqGraph) -> None:
    x = g.qdq(g.input("batch", 5, 9, 9))
    y = g.qdq(g.node("MaxPool", [x], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]), like=x)
    finish(g, g.conv(y, 5, 4, (1, 1)))


def max_pool_other_scale(g: QdqGraph) -> None:
    x = g.qdq(g.input("batch", 5, 9, 9))
    finish(g, g.conv(g.qdq(g.node("MaxPool", [x], kernel_shape=[2, 2], strides=[2, 2])), 5, 4, (1, 1)))


def concat(g: QdqGraph) -> None:
    x = g.qdq(g.input("batch", 3, 6, 6))
    parts = [g.qdq(g.conv(x, 3, 4)), g.qdq(g.conv(x, 3, 5)), g.qdq(g.conv(x, 3, 2), scale=0.05)]
    finish(g, g.conv(g.qdq(g.node("Concat", parts, axis=1)), 11, 4, (1, 1)))


def concat_same_scale(g: QdqGraph) -> None:
    a, b = g.qdq(g.input("batch", 3, 6, 6)), g.input("batch", 2, 6, 6, name="y")
    other = g.qdq(b, like=a)
    finish(g, g.conv(g.qdq(g.node("Concat", [a, other], axis=1), like=a), 5, 4, (1, 1)))


def gemm(g: QdqGraph) -> None:
    r = g.rng
    x = g.qdq(g.input("batch", 33))
    y = g.gemm(x, 33, 17, axis=0 if r.random() < 0.6 else None, bias=r.random() < 0.7)
    finish(g, y, scale=float(r.uniform(0.05, 0.5)))


def matmul_bias(g: QdqGraph) -> None:
    """Two dimensions: MatMul + Add becomes a Gemm."""
    x = g.qdq(g.input("batch", 33))
    w, scale = g.weight((33, 17), axis=1)
    finish(g, g.node("Add", [g.node("MatMul", [x, w]), g.bias(x, scale, 17)]), scale=0.3)


def matmul(g: QdqGraph) -> None:
    x = g.qdq(g.input("batch", 5, 33))
    w, _ = g.weight((33, 17), axis=1 if g.rng.random() < 0.6 else None)
    finish(g, g.node("MatMul", [x, w]), scale=0.3)


def linear_of_tokens(g: QdqGraph) -> None:
    """Three dimensions: the product is dequantized and the bias added in float32, in one right way."""
    x = g.qdq(g.input("batch", 5, 33))
    w, scale = g.weight((33, 17), axis=1 if g.rng.random() < 0.6 else None)
    finish(g, g.node("Add", [g.node("MatMul", [x, w]), g.bias(x, scale, 17)]), scale=0.3)


def turned_weight(g: QdqGraph) -> None:
    """A weight of (out, in) that a Transpose turns before MatMul, as exporters write a linear layer."""
    x = g.qdq(g.input("batch", 5, 33))
    w, scale = g.weight((17, 33), axis=0)
    turned = g.node("Transpose", [w], perm=[1, 0])
    finish(g, g.node("Add", [g.node("MatMul", [x, turned]), g.bias(x, scale, 17)]), scale=0.3)


def attention(g: QdqGraph) -> None:
    """Scores q · k of two activations, a softmax, and the product with v."""
    q, k, v = (g.qdq(g.input("batch", 2, 7, 8, name=n), scale=0.03) for n in "qkv")
    turned = g.node("Transpose", [k], perm=[0, 1, 3, 2])
    scores = g.qdq(g.node("MatMul", [q, turned]), scale=0.05)
    weights = g.qdq(g.node("Softmax", [scores], axis=-1), scale=1 / 255, zero_point=g.lowest)
    finish(g, g.node("MatMul", [weights, v]), scale=0.03)


def sigmoid(g: QdqGraph) -> None:
    x = g.qdq(g.input("batch", 999), scale=float(g.rng.uniform(0.02, 0.1)))
    finish(g, g.node("Sigmoid", [x]), scale=1 / 255, zero_point=g.lowest)


def leaky_relu(g: QdqGraph) -> None:
    finish(g, g.node("LeakyRelu", [g.qdq(g.input("batch", 999))], alpha=0.1))


def softmax(g: QdqGraph) -> None:
    x = g.qdq(g.input("batch", 13, 50), scale=float(g.rng.uniform(0.01, 0.2)))
    y = g.node("Softmax", [x], axis=int(g.rng.choice([-1, 1, 2])))
    finish(g, y, scale=float(g.rng.choice([1 / 255, 1 / 256, 0.003])), zero_point=g.lowest)


def four_bits(g: QdqGraph) -> None:
    """Activations of 4 bits: a Clip on the integers between QuantizeLinear and DequantizeLinear."""
    x = g.qdq(g.input("batch", 3, 8, 8))
    a = g.qdq(g.node("Relu", [g.conv(x, 3, 8)]), zero_point=0, scale=0.2, clip=(0, 15))
    b = g.qdq(g.node("Relu", [g.conv(a, 8, 8, pads=[1, 1, 1, 1])]), zero_point=0, scale=0.2, clip=(0, 15))
    c = g.qdq(g.node("Add", [a, b]), zero_point=0, scale=0.3, clip=(0, 15))
    finish(g, g.conv(c, 8, 4, (1, 1)))


def moves(g: QdqGraph) -> None:
    """Pad, Slice, Transpose, Reshape, Flatten at one scale."""
    x = g.qdq(g.input("batch", 4, 8, 8))
    pads = g.constant("pads", np.array([0, 0, 1, 0, 0, 0, 2, 1], np.int64))
    p = g.qdq(g.node("Pad", [x, pads]), like=x)
    ends = [g.constant("index", np.array([v], np.int64)) for v in (1, 9, 2, 2)]
    s = g.qdq(g.node("Slice", [p, ends[0], ends[1], ends[2], ends[3]]), like=x)
    t = g.qdq(g.node("Transpose", [s], perm=[0, 1, 3, 2]), like=x)
    c = g.qdq(g.conv(t, 4, 4, (1, 1)))
    r = g.qdq(g.node("Reshape", [c, g.constant("shape", np.array([0, 4, 36], np.int64))]), like=c)
    f = g.qdq(g.node("Flatten", [r], axis=1), like=c)
    finish(g, g.gemm(f, 144, 5), scale=0.5)


def carried_back(g: QdqGraph) -> None:
    """QuantizeLinear travels back over Reshape and Transpose to the convolution, DequantizeLinear forward."""
    x = g.qdq(g.input("batch", 4, 6, 6))
    c = g.node("Relu", [g.conv(x, 4, 8)])
    r = g.node("Reshape", [c, g.constant("shape", np.array([0, 8, 16], np.int64))])
    y = g.qdq(g.node("Transpose", [r], perm=[0, 2, 1]), zero_point=g.lowest)
    t = g.node("Reshape", [y, g.constant("shape", np.array([-1, 8], np.int64))])
    finish(g, g.gemm(t, 8, 5), scale=0.3)


def float_rest(g: QdqGraph) -> None:
    """Pieces that stay in float but whose result IEEE 754 fixes."""
    x = g.qdq(g.input("batch", 4, 6, 6))
    y = g.qdq(g.node("Relu", [x]), zero_point=7)
    z = g.qdq(g.node("Sub", [x, y]))
    finish(g, g.node("Div", [z, g.constant("c", np.float32(3.0))]))


def residual_network(g: QdqGraph) -> None:
    """Two blocks with a projection, global pooling and a classifier."""
    x = g.qdq(g.input("batch", 3, 12, 12))
    a = g.qdq(g.node("Relu", [g.conv(x, 3, 8, pads=[1] * 4)]), zero_point=g.lowest, scale=0.06)
    b = g.qdq(g.node("Relu", [g.conv(a, 8, 8, pads=[1] * 4)]), zero_point=g.lowest, scale=0.1)
    c = g.qdq(g.conv(b, 8, 8, pads=[1] * 4), scale=0.1)
    d = g.qdq(g.node("Relu", [g.node("Add", [c, a])]), zero_point=g.lowest, scale=0.1)
    e = g.qdq(g.conv(d, 8, 16, (1, 1), strides=[2, 2]), scale=0.1)
    f = g.qdq(g.conv(d, 8, 16, pads=[1] * 4, strides=[2, 2]), scale=0.15)
    h = g.qdq(g.node("Relu", [g.node("Add", [e, f])]), zero_point=g.lowest, scale=0.15)
    p = g.qdq(g.node("GlobalAveragePool", [h]), scale=0.08)
    r = g.qdq(g.node("Flatten", [p], axis=1), like=p)
    finish(g, g.gemm(r, 16, 10), scale=0.2)


CASES: tuple[Case, ...] = (
    conv, depthwise, conv_1d, wide_conv, conv_relu, conv_clip, add, add_relu, add_spread, add_row, multiply,
    squeeze_and_excite, global_average, global_average_after_conv, average, max_pool, max_pool_other_scale, concat,
    concat_same_scale, gemm, matmul_bias, matmul, linear_of_tokens, turned_weight, attention, sigmoid, leaky_relu,
    softmax, four_bits, moves, carried_back, float_rest, residual_network,
)  # fmt: skip


def samples(g: QdqGraph, *, batch: int = 2, seed: int = 0) -> list[np.ndarray]:
    """Normal data that fills and overfills the ranges, one array for each input."""
    r = np.random.default_rng(seed)
    shapes = [[d.dim_value or batch for d in v.type.tensor_type.shape.dim] for v in g.inputs]
    return [(r.standard_normal(shape) * 1.5).astype(np.float32) for shape in shapes]
