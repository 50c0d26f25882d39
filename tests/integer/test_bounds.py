from collections import Counter
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import helper, numpy_helper
from torch import nn

import isobit
from integer.cases import residual_network
from integer.graphs import QdqGraph
from isobit.core.arithmetic import FLOAT32, FLOAT32_PAIRS, Arithmetic
from isobit.engines import ENGINES
from isobit.integer import accumulating, overflow_risks
from isobit.integer.pairs import PairedProducts


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


@pytest.mark.parametrize(
    ("target", "settings", "expected"),
    [
        ("onnxruntime-x86", {}, ["0", "1"]),
        ("onnxruntime-x86", {"keep_float": ["0"]}, ["1"]),
        ("onnxruntime-dynamic", {}, ["0.1.MatMulInteger", "1.1.MatMulInteger"]),
        ("onnxruntime-weights", {}, ["0", "1"]),
        ("openvino-weights", {}, []),
        ("adreno-fp16", {}, []),
        ("nnie", {}, []),
        ("ceva", {"bits": 16}, []),
    ],
)
def test_layers_that_sum_integers(
    target: str, settings: dict[str, object], expected: list[str], tmp_path: Path
) -> None:
    """Of two linear layers: as the engine's own list of kernels has them, and none where all are in float."""
    net = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32)).eval()
    x = torch.randn(16, 32, generator=torch.Generator().manual_seed(0))
    model = isobit.quantize(net, [x], target=target, **settings)
    path = isobit.export(model, tmp_path / "net.onnx").path
    engine = ENGINES["onnxruntime"]()
    assert list(accumulating(path, engine.arithmetic)) == expected
    kernels = Counter({kernel.name: kernel.count for kernel in engine.load(path).kernels()})
    integers = [
        name for name in kernels if name in ("QGemm", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "MatMulNBits")
    ]
    assert sum(kernels[name] for name in integers) == len(expected)


@pytest.mark.parametrize("high", [40, 63, 64, 65, 127])
@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_pairs_against_all_levels(high: int, dtype: type) -> None:
    """Every pair of neighbours with every pair of levels, as vpmaddubsw adds them: signed levels are 128 higher."""
    rng = np.random.default_rng(high)
    w = rng.integers(-high, high + 1, (6, 7))
    w[0, :2] = high
    w[1] = [high, 0, high, 0, high, 0, high]  # two large weights that no engine adds
    saturates = []
    for row in w:
        sums = [a * row[i] + b * row[i + 1] for i in (0, 2, 4) for a in (0, 255) for b in (0, 255)]
        saturates.append(max(sums) > 32767 or min(sums) < -32768)
    found = overflow_risks(one_gemm(w, zero_point=0, dtype=dtype).model(), FLOAT32_PAIRS)
    channels = tuple(int(c) for c in np.flatnonzero(saturates))
    assert (found[0].channels if found else ()) == channels and 1 not in channels
    assert all(r.kind == "pair" and r.limit == 32767 and r.outputs == 6 for r in found)
    for risk in found:
        farthest = sum(a * b for a, b in zip(risk.weights, risk.levels, strict=True))
        assert risk.worst in (farthest, -farthest - 1) and set(risk.levels) <= {0, 255}
    if high == 63:
        assert not found  # 7-bit weights are the known cure: 2 · 255 · 63 = 32,130
    if high == 65:
        assert 0 in found[0].channels and found[0].worst >= 2 * 255 * 65


def saturating(g: QdqGraph, shape: tuple[int, ...], ones: list[tuple[int, ...]], **attributes: int) -> None:
    """A convolution whose first output has the weight 127 at those places, (input channel, row, column)."""
    w = np.zeros(shape, np.int8)
    for place in ones:
        w[(0, *place)] = 127
    names = [g.constant("w", w), g.constant("s", np.ones(shape[0], np.float32))]
    names.append(g.constant("z", np.zeros(shape[0], np.int8)))
    weight = g.node("DequantizeLinear", names, axis=0)
    channels = shape[1] * attributes.get("group", 1)
    x = g.qdq(g.input("batch", channels, 6, 6), zero_point=3, scale=0.1)
    g.output(g.qdq(g.node("Conv", [x, weight], kernel_shape=list(shape[2:]), **attributes), scale=1.0))


@pytest.mark.parametrize(
    ("shape", "ones", "group", "expected"),
    [
        ((2, 4, 3, 3), [(0, 1, 1), (1, 1, 1)], 1, True),
        ((2, 4, 3, 3), [(1, 1, 1), (2, 1, 1)], 1, False),
        ((2, 4, 3, 3), [(0, 1, 1), (0, 1, 2)], 1, False),
        ((2, 3, 3, 3), [(0, 1, 1), (1, 1, 1)], 1, True),  # OpenVINO: neighbours at one position
        ((2, 3, 3, 3), [(2, 0, 0), (0, 0, 1)], 1, True),  # ONNX Runtime: neighbours through all of the kernel
        ((2, 3, 3, 3), [(1, 0, 0), (2, 0, 0)], 1, False),
        ((4, 1, 3, 3), [(0, 0, 0), (0, 0, 1)], 4, False),  # depthwise
        ((8, 1, 3, 3), [(0, 0, 0), (0, 2, 2)], 4, True),  # two outputs a channel: any two
    ],
)
def test_which_products_are_neighbours(
    shape: tuple[int, ...], ones: list[tuple[int, ...]], group: int, expected: bool
) -> None:
    g = QdqGraph(0)
    saturating(g, shape, ones, group=group)
    assert bool(overflow_risks(g.model(), FLOAT32_PAIRS)) is expected


def test_fewer_levels_leave_room() -> None:
    """Activations of 4 bits, clipped on the integers, cannot saturate; nor do unsigned weights."""
    g = QdqGraph(0)
    x = g.qdq(g.input("batch", 4, 5, 5), zero_point=0, clip=(0, 15))
    g.output(g.qdq(g.conv(x, 4, 4)))
    assert overflow_risks(g.model(), FLOAT32_PAIRS) == ()
    assert overflow_risks(one_gemm(np.full((2, 4), 127), zero_point=0).model(), FLOAT32_PAIRS)
    g = QdqGraph(0)
    x = g.qdq(g.input("batch", 4, 5, 5), zero_point=0)
    weight, _ = g.weight((4, 4, 3, 3), low=0, high=255, dtype=np.uint8)
    g.output(g.qdq(g.node("Conv", [x, weight])))
    assert overflow_risks(g.model(), FLOAT32_PAIRS) == ()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("shape", "groups"), [((5, 4, 3, 3), 1), ((6, 3, 3, 3), 2), ((4, 1, 5, 5), 2), ((7, 9), 1)])
def test_weights_brought_within_bounds(shape: tuple[int, ...], groups: int, seed: int) -> None:
    """No pair saturates afterwards, and what could not is untouched."""
    rng = np.random.default_rng(seed)
    high = rng.integers(100, 256, (groups, shape[1]))
    before = PairedProducts(rng.integers(-128, 128, shape), np.zeros_like(high), high)
    after = PairedProducts(before.within(16), before.low, before.high)
    assert before.worst().max() > 32767 >= after.worst().max()
    fine = before.worst() <= 32767
    assert np.array_equal(before.weight[fine], after.weight[fine])
    assert (np.abs(after.weight) <= np.abs(before.weight)).all()


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
    sums = [
        [255 * v for i in (0, 2, 4) for a, b in [column[i : i + 2]] for v in (a, b, a + b)] for column in w.T.tolist()
    ]
    assert pairs == {tuple(c for c, s in enumerate(sums) if max(s) > 32767 or min(s) < -32768)} - {()}
