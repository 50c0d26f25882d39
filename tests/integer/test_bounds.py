from itertools import product

import numpy as np
import pytest
from onnx import helper, numpy_helper

from integer.cases import residual_network
from integer.graphs import QdqGraph
from isobit.core.arithmetic import FLOAT32, FLOAT32_PAIRS, Arithmetic
from isobit.integer import overflow_risks


def one_gemm(w: np.ndarray, *, zero_point: int, bias: np.ndarray | None = None, **kind: object) -> QdqGraph:
    g = QdqGraph(0, **kind)
    x = g.qdq(g.input("batch", w.shape[1]), zero_point=zero_point, scale=0.1)
    scale = np.full(len(w), 0.01, np.float32)
    names = [g.constant("weight", w.astype(np.int8)), g.constant("scale", scale)]
    weight = g.node("DequantizeLinear", [*names, g.constant("zero_point", np.zeros(len(w), np.int8))], axis=0)
    inputs = [x, weight]
    if bias is not None:
        b = [g.constant("bias", bias.astype(np.int32)), g.constant("scale", (np.float32(0.1) * scale))]
        inputs.append(g.node("DequantizeLinear", [*b, g.constant("zero_point", np.zeros(len(w), np.int32))], axis=0))
    g.output(g.qdq(g.node("Gemm", inputs, transB=1)))
    return g


@pytest.mark.parametrize("zero_point", [0, 100, 255])
def test_the_worst_accumulator_is_that_of_brute_force(zero_point: int) -> None:
    """All combinations of the lowest and highest level: a linear function is extreme at a corner."""
    rng = np.random.default_rng(zero_point)
    w, bias = rng.integers(-128, 128, (4, 6)), rng.integers(-30_000, 30_000, 4)
    corners = np.array(list(product((0, 255), repeat=6))) - zero_point
    worst = np.abs(corners @ w.T + bias).max(0)
    bits = 17
    found = overflow_risks(one_gemm(w, zero_point=zero_point, bias=bias).model(), Arithmetic(accumulator_bits=bits))
    channels = tuple(int(c) for c in np.flatnonzero(worst > 2 ** (bits - 1) - 1))
    assert channels and len(channels) < 4
    assert found[0].kind == "accumulator" and found[0].channels == channels
    assert (found[0].worst, found[0].limit) == (worst.max(), 2 ** (bits - 1) - 1)
    assert overflow_risks(one_gemm(w, zero_point=zero_point, bias=bias).model(), FLOAT32) == ()


@pytest.mark.parametrize("high", [40, 63, 64, 65, 127])
def test_pairs_against_all_pairs(high: int) -> None:
    """Every pair of weights with every pair of levels 0 and 255, as vpmaddubsw adds them."""
    rng = np.random.default_rng(high)
    w = rng.integers(-high, high + 1, (5, 7))
    w[0, :2] = high
    saturates = []
    for row in w:
        sums = [
            a * row[i] + b * row[j]
            for i, j in product(range(7), repeat=2)
            if i != j
            for a in (0, 255)
            for b in (0, 255)
        ]
        saturates.append(max(sums) > 32767 or min(sums) < -32768)
    found = overflow_risks(one_gemm(w, zero_point=0).model(), FLOAT32_PAIRS)
    channels = tuple(int(c) for c in np.flatnonzero(saturates))
    assert (found[0].channels if found else ()) == channels
    assert all(r.kind == "pair" and r.limit == 32767 for r in found)
    if high == 63:
        assert not found  # 7-bit weights are the known cure: 2 · 255 · 63 = 32,130
    if high == 65:
        assert 0 in found[0].channels and found[0].worst >= 2 * 255 * 65


def test_fewer_levels_leave_room() -> None:
    """Activations of 4 bits, clipped on the integers, cannot saturate; signed ones have other instructions."""
    g = QdqGraph(0)
    x = g.qdq(g.input("batch", 4, 5, 5), zero_point=0, clip=(0, 15))
    g.output(g.qdq(g.conv(x, 4, 4)))
    assert overflow_risks(g.model(), FLOAT32_PAIRS) == ()
    w = np.full((2, 4), 127)
    assert overflow_risks(one_gemm(w, zero_point=0).model(), FLOAT32_PAIRS)
    assert overflow_risks(one_gemm(w, zero_point=0, dtype=np.int8).model(), FLOAT32_PAIRS) == ()


def test_a_network_names_its_layers() -> None:
    g = QdqGraph(0)
    residual_network(g)
    found = overflow_risks(g.model(), FLOAT32_PAIRS)
    layers = [n.name for n in g.nodes if n.op_type in ("Conv", "Gemm")]
    assert [r.layer for r in found] == layers and all(r.kind == "pair" for r in found)
    assert overflow_risks(g.model(), FLOAT32) == ()


def test_a_product_with_a_dynamic_range_is_bounded_for_every_zero_point() -> None:
    """All corners of 0 and 255 for all 256 zero points; and every pair of weights on raw bytes."""
    rng = np.random.default_rng(0)
    w = rng.integers(-128, 128, (6, 4))
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("MatMulInteger", ["q", "w", "z"], ["y"], name="product"),
    ]
    given = helper.make_tensor_value_info("x", 1, ["n", 6])
    graph = helper.make_graph(
        nodes, "g", [given], [helper.make_tensor_value_info("y", 6, None)],
        [numpy_helper.from_array(w.astype(np.int8), "w")],
    )  # fmt: skip
    file = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    corners = np.array(list(product((0, 255), repeat=6)))
    worst = np.max([np.abs((corners - z) @ w).max(0) for z in range(256)], axis=0)
    bits = int(np.sort(worst)[2]).bit_length() + 1
    (found,) = overflow_risks(file, Arithmetic(accumulator_bits=bits))
    channels = tuple(int(c) for c in np.flatnonzero(worst > 2 ** (bits - 1) - 1))
    assert 0 < len(channels) < 4
    assert (found.layer, found.kind, found.channels, found.worst) == ("product", "accumulator", channels, worst.max())
    assert overflow_risks(file, FLOAT32) == ()
    pairs = {r.channels for r in overflow_risks(file, FLOAT32_PAIRS)}
    sums = [[255 * (a + b) for i, a in enumerate(column) for b in column[:i]] for column in w.T.tolist()]
    assert pairs == {tuple(c for c, s in enumerate(sums) if max(s) > 32767 or min(s) < -32768)} - {()}
