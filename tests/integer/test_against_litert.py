"""Files written for LiteRT, read back and evaluated with integers, against the real LiteRT: both sets of kernels."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from integer.cases import CASES, Case, average, samples, softmax
from integer.graphs import QdqGraph
from isobit.core.errors import UnsupportedError
from isobit.core.litert_file import serialized
from isobit.engines import ENGINES, Engine, LiteRt
from isobit.export.litert import translate
from isobit.integer import ReferenceRun
from isobit.integer.interpreter import Reference
from isobit.integer.litert import qdq_of_litert

pytestmark = pytest.mark.skipif(bool(LiteRt().missing()), reason=LiteRt().missing() or "installed")


def line(g: QdqGraph) -> None:
    """Convolutions over one dimension with strides, dilations and groups, a residual, pooling, a mean."""
    x = g.qdq(g.input("batch", 6, 21))
    a = g.qdq(g.node("Relu", [g.conv(x, 6, 8, (3,), pads=[1, 1])]), scale=0.1, zero_point=g.lowest)
    b = g.qdq(g.conv(a, 8, 8, (5,), group=8, pads=[4, 4], dilations=[2]), scale=0.2)
    c = g.qdq(g.node("Add", [a, b]))
    d = g.qdq(g.conv(c, 8, 4, (3,), strides=[2], pads=[1, 0], group=2), scale=0.1)
    d = g.node("MaxPool", [d], kernel_shape=[2], strides=[2])
    g.output(g.qdq(g.node("GlobalAveragePool", [d])))


WRITTEN = (*CASES, line)

PARTLY = {average: "padding that LiteRT does not have", softmax: "another dimension than the last"}
"""Cases that draw what LiteRT cannot express for some seeds, and what the error says."""


@pytest.fixture(params=["litert", "litert-reference"])
def engine(request: pytest.FixtureRequest) -> Engine:
    return ENGINES[request.param]()


def run(g: QdqGraph, engine: Engine, folder: Path, inputs: list[np.ndarray]) -> tuple[np.ndarray, ReferenceRun]:
    """The engine's result and the reference's for a graph, written as a LiteRT file."""
    path = folder / "net.tflite"
    path.write_bytes(serialized(translate(onnx.load(g.save(folder / "net.onnx")), {})))
    (y,) = engine.load(path).run(inputs)
    return y, Reference(qdq_of_litert(path), engine.arithmetic).run(inputs)


@pytest.mark.parametrize("case", WRITTEN, ids=lambda case: case.__name__)
def test_integer_by_integer(case: Case, engine: Engine, tmp_path: Path) -> None:
    ran = 0
    for seed in range(6):
        g = QdqGraph(seed)
        case(g)
        inputs = samples(g, batch=4, seed=seed)
        try:
            y, reference = run(g, engine, tmp_path, inputs)
        except UnsupportedError as error:
            assert PARTLY[case] in str(error)
            continue
        ran += 1
        if reference.exact:
            np.testing.assert_array_equal(y, reference.outputs[0])
        else:  # a softmax or sigmoid in float, which no two programs round alike
            step = g.constants[g.nodes[-1].input[1]]
            assert np.abs(y - reference.outputs[0]).max() <= 2.01 * step  # and what a flipped step moves behind it
    assert ran


def test_only_softmax_sigmoid_and_the_like_are_not_exact(tmp_path: Path) -> None:
    floats = set()
    for case in WRITTEN:
        g = QdqGraph(1)
        case(g)
        try:
            _, reference = run(g, LiteRt(), tmp_path, samples(g))
        except UnsupportedError:
            continue
        if not reference.exact:
            floats.add(case.__name__)
    assert floats == {"squeeze_and_excite", "attention", "sigmoid", "leaky_relu", "softmax"}


@pytest.mark.parametrize("signed", [False, True])
def test_ties(engine: Engine, signed: bool, tmp_path: Path) -> None:
    """Scales with two digits: many sums fall on the middle between two levels."""
    r = np.random.default_rng(0)
    for _ in range(10):
        g = QdqGraph(0, dtype=np.int8 if signed else np.uint8)
        a = g.qdq(g.input("batch", 16, 3, 3), scale=float(r.integers(1, 20) / 100))
        b = g.qdq(g.input("batch", 16, 3, 3, name="y"), scale=float(r.integers(1, 20) / 100))
        total = g.qdq(g.node("Add", [a, b]), scale=float(r.integers(5, 30) / 100))
        product = g.qdq(g.node("Mul", [total, a]), scale=float(r.integers(5, 30) / 100))
        g.output(g.qdq(g.node("GlobalAveragePool", [product]), scale=float(r.integers(1, 20) / 100)))
        steps = r.integers(-300, 300, (2, 8, 16, 3, 3)) / 200  # halves of many of these scales
        y, reference = run(g, engine, tmp_path, [x.astype(np.float32) for x in steps])
        assert reference.exact
        np.testing.assert_array_equal(y, reference.outputs[0])


def test_unsigned_and_signed_bytes_are_one_file(tmp_path: Path) -> None:
    """A graph with unsigned bytes is written 128 lower, so that both give the same file's results."""
    results = []
    for dtype, zero in ((np.uint8, 131), (np.int8, 3)):
        g = QdqGraph(3, dtype=dtype)
        x = g.qdq(g.input("batch", 3, 8, 8), scale=0.03, zero_point=zero)
        g.output(g.qdq(g.conv(x, 3, 4), scale=0.2, zero_point=zero))
        results.append(run(g, LiteRt(), tmp_path, samples(g))[0])
    np.testing.assert_array_equal(*results)


def test_what_has_no_form_is_named(tmp_path: Path) -> None:
    g = QdqGraph(0)
    g.output(g.qdq(g.conv(g.qdq(g.input("batch", 3, 4, 4, 4)), 3, 4, (1, 1, 1))))
    with pytest.raises(UnsupportedError, match=r"LiteRT: node_conv_\d+ \(Conv\) has 3 dimensions, not 1 or 2"):
        translate(onnx.load(g.save(tmp_path / "net.onnx")), {})
    g = QdqGraph(0)
    x = g.qdq(g.input("batch", 3, 8, 8))
    w = g.constant("weight", g.rng.integers(0, 256, (4, 3, 1, 1)).astype(np.uint8))
    names = [w, g.constant("scale", np.float32(0.1)), g.constant("zero_point", np.uint8(7))]
    g.output(g.qdq(g.node("Conv", [x, g.node("DequantizeLinear", names)])))
    with pytest.raises(UnsupportedError, match="has a zero point, and LiteRT's weights have none"):
        translate(onnx.load(g.save(tmp_path / "net.onnx")), {})
