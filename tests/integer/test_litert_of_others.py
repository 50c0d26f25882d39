"""LiteRT files as others write them, integer by integer: the reference against both sets of kernels."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from integer.litert_files import Network
from isobit.core.batches import Batch
from isobit.core.errors import UnsupportedError
from isobit.engines import ENGINES, Engine, LiteRt
from isobit.integer.files import inputs_of, load_qdq, output_step, random_inputs
from isobit.integer.inputs import fitted
from isobit.integer.interpreter import Reference
from isobit.integer.litert import qdq_of_litert

pytestmark = pytest.mark.skipif(bool(LiteRt().missing()), reason=LiteRt().missing() or "installed")

LEVELS = np.arange(-128, 128, dtype=np.int8).reshape(1, 256)


@pytest.fixture(params=["litert", "litert-reference"])
def engine(request: pytest.FixtureRequest) -> Engine:
    return ENGINES[request.param]()


def agree(n: Network, engine: Engine, path: Path, *outputs: int, inputs: list[np.ndarray] | None = None) -> np.ndarray:
    """The engine's outputs, which have to be the reference's."""
    given = n.draw() if inputs is None else inputs
    n.save(path, *outputs)
    found = engine.load(path).run(given)
    reference = Reference(qdq_of_litert(path), engine.arithmetic).run(given)
    for y, expected in zip(found, reference.outputs, strict=True):
        np.testing.assert_array_equal(y, expected)
    return found[0]


ELEMENTWISE = {
    "RELU": {},
    "RELU6": {},
    "LEAKY_RELU": {"alpha": 0.3},
    "QUANTIZE": {},
    "HARD_SWISH": {"version": 1},
    "GELU": {},
    "LOGISTIC": {"grid": (1 / 256, -128)},
    "TANH": {"grid": (1 / 128, 0)},
}


@pytest.mark.parametrize("kind", ELEMENTWISE)
def test_all_levels_of_a_function(kind: str, engine: Engine, tmp_path: Path) -> None:
    for seed in range(12):
        n = Network(seed)
        x = n.input(1, 256)
        options = {"version": 2, **ELEMENTWISE[kind]}
        y = n.op(kind, [x], (1, 256), **options)  # type: ignore[arg-type]
        found = agree(n, engine, tmp_path / "net.tflite", y, inputs=[LEVELS])
        assert len(np.unique(found)) > 3


def softmax(n: Network) -> int:
    return n.op("SOFTMAX", [n.input(6, 50)], (6, 50), grid=(1 / 256, -128), beta=1.0)


def mean(n: Network) -> int:
    axes = [(1, 2), (2, 3), (1,), (3,), (2,), (1, 2, 3)][int(n.rng.integers(6))]
    keep = bool(n.rng.integers(2))
    shape = [s if i not in axes else 1 for i, s in enumerate((2, 5, 7, 6)) if keep or i not in axes]
    return n.op("MEAN", [n.input(2, 5, 7, 6), n.constant(np.array(axes, np.int32))], shape, keepDims=keep)


def difference(n: Network) -> int:
    shape = (2, 16, 16, 3)
    a, b = n.input(*shape), n.input(*shape)
    c = n.op("SUB", [a, b], shape, fusedActivationFunction=int(n.rng.integers(2)))
    return n.op("ADD", [c, b], shape)


def larger_and_smaller(n: Network) -> int:
    a = n.input(2, 9)
    b = n.input(2, 9, grid=n.grids[a])
    return n.op("MINIMUM", [n.op("MAXIMUM", [a, b], (2, 9), like=a), b], (2, 9), like=a)


def padded(n: Network) -> int:
    x = n.input(1, 4, 4, 3)
    pads = n.constant(np.array([[0, 0], [1, 2], [0, 1], [0, 0]], np.int32))
    y = n.op("PAD", [x, pads], (1, 7, 5, 3), like=x, bare=True)
    fill = n.builder.tensor("fill", (), np.int8, grid=(np.float32(n.grids[x][0]), np.array(n.grids[x][1])),
                            data=np.array(-77, np.int8))  # fmt: skip
    return n.op("PADV2", [y, pads, fill], (1, 10, 6, 3), like=x)


def moved(n: Network) -> int:
    """What selects and moves bytes, one after the other."""
    x = n.input(2, 4, 6, 8)

    def ints(*values: int) -> int:
        return n.constant(np.array(values, np.int32))

    y = n.op("TRANSPOSE", [x, ints(0, 2, 1, 3)], (2, 6, 4, 8), like=x, bare=True)
    y = n.op("SLICE", [y, ints(0, 1, 0, 0), ints(2, 4, -1, 8)], (2, 4, 4, 8), like=x)
    y = n.op("DEPTH_TO_SPACE", [y], (2, 8, 8, 2), like=x, version=1, blockSize=2)
    y = n.op("SPACE_TO_DEPTH", [y], (2, 2, 2, 32), like=x, blockSize=4)
    y = n.op("RESIZE_NEAREST_NEIGHBOR", [y, ints(4, 4)], (2, 4, 4, 32), like=x, halfPixelCenters=True)
    y = n.op("STRIDED_SLICE", [y, ints(0, 1, 0, 0), ints(0, 2, 4, 32), ints(1, 1, 1, 2)], (2, 4, 16), like=x,
             beginMask=1, endMask=1, shrinkAxisMask=2)  # fmt: skip
    y = n.op("EXPAND_DIMS", [y, ints(1)], (2, 1, 4, 16), like=x, version=1, bare=True)
    y = n.op("SQUEEZE", [y], (2, 4, 16), like=x, version=1, squeezeDims=[1])
    parts = [n.tensor((2, 4, 8), n.grids[x]) for _ in range(2)]
    n.builder.op("SPLIT", [ints(2), y], parts, version=2, numSplits=2)
    y = n.op("PACK", parts[::-1], (2, 2, 4, 8), like=x, axis=1, valuesCount=2)
    return n.op("REDUCE_MAX", [y, ints(1)], (2, 4, 8), like=x, keepDims=False)


def fully_connected(n: Network) -> int:
    """Without a bias, on more than two dimensions, one scale for the whole weight; then with a bias and a ReLU."""
    x = n.input(2, 3, 8)
    w, _ = n.weight((5, 8), axis=None)
    y = n.op("FULLY_CONNECTED", [x, w, -1], (2, 3, 5), grid=(0.15, 3), keepNumDims=True, version=5)
    w, scale = n.weight((4, 5), axis=None)
    bias = n.constant(n.rng.integers(-500, 500, 4).astype(np.int32), np.float32(n.grids[y][0]) * scale)
    options = {"keepNumDims": False, "fusedActivationFunction": 1}
    return n.op("FULLY_CONNECTED", [y, w, bias], (6, 4), grid=(0.2, -9), version=5, **options)  # type: ignore[arg-type]


def convolutional(n: Network) -> int:
    """Fused ReLU6, pooling with a ReLU, a residual with a ReLU, a mean that drops both dimensions, a softmax."""
    x = n.input(1, 8, 8, 3)
    a = n.conv(x, (3, 8), (1, 8, 8, 8), fusedActivationFunction=3)
    b = n.conv(a, (8, 8), (1, 8, 8, 8))
    b = n.op("ADD", [a, b], (1, 8, 8, 8), fusedActivationFunction=1)
    window = {"strideH": 2, "strideW": 2, "filterHeight": 2, "filterWidth": 2, "fusedActivationFunction": 1}
    c = n.op("AVERAGE_POOL_2D", [b], (1, 4, 4, 8), like=b, **window)  # type: ignore[arg-type]
    axes = n.constant(np.array([1, 2], np.int32))
    d = n.op("MEAN", [c, axes], (1, 8), keepDims=False)
    w, scale = n.weight((5, 8))
    bias = n.constant(np.zeros(5, np.int32), np.float32(n.grids[d][0]) * scale)
    e = n.op("FULLY_CONNECTED", [d, w, bias], (1, 5), grid=(0.1, 0), version=12)
    return n.op("SOFTMAX", [e], (1, 5), grid=(1 / 256, -128), beta=1.0)


CASES: tuple[Callable[[Network], int], ...] = (
    softmax, mean, difference, larger_and_smaller, padded, moved, fully_connected, convolutional,
)  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_integer_by_integer(case: Callable[[Network], int], engine: Engine, tmp_path: Path) -> None:
    for seed in range(6):
        n = Network(seed)
        agree(n, engine, tmp_path / "net.tflite", case(n))


def test_shapes_that_the_file_computes(engine: Engine, tmp_path: Path) -> None:
    """Flatten as Keras writes it: the batch out of SHAPE, packed with what is left to RESHAPE."""
    n = Network()
    x = n.input(3, 2, 4)

    def ints(*values: int) -> int:
        return n.constant(np.array(values, np.int32))

    sizes = n.op("SHAPE", [x], (3,), dtype=np.int32, version=1, outType=2)
    batch = n.op("STRIDED_SLICE", [sizes, ints(0), ints(1), ints(1)], (), dtype=np.int32, version=1, shrinkAxisMask=1)
    shape = n.op("PACK", [batch, n.constant(np.array(-1, np.int32))], (2,), dtype=np.int32, version=1, valuesCount=2)
    y = n.op("RESHAPE", [x, shape], (3, 8), like=x, version=1, bare=True)
    n.builder.graph.tensors[y].shapeSignature = [-1, -1]
    places = n.op("ARG_MAX", [y, ints(1)], (3,), dtype=np.int32, version=2, outputType=2)
    agree(n, engine, tmp_path / "net.tflite", y, places)


def test_a_bias_without_a_scale_has_that_of_the_sum(tmp_path: Path) -> None:
    """XNNPACK leaves such a layer to LiteRT's own kernels, so the reference's are the ones to compare with."""
    for seed in range(4):
        n = Network(seed)
        w, _ = n.weight((4, 8))
        bias = n.constant(n.rng.integers(-500, 500, 4).astype(np.int32))
        y = n.op("FULLY_CONNECTED", [n.input(6, 8), w, bias], (6, 4), grid=(0.2, -9), version=12)
        agree(n, ENGINES["litert-reference"](), tmp_path / "net.tflite", y)


def test_tensors_of_one_name_are_told_apart(tmp_path: Path) -> None:
    n = Network()
    x = n.input(1, 6)
    a = n.op("RELU", [x], (1, 6))
    b = n.op("RELU", [a], (1, 6))
    for index in (a, b):
        n.builder.graph.tensors[index].name = "relu"
    path = n.save(tmp_path / "net.tflite", b)
    file = qdq_of_litert(path)
    assert [node.output[0] for node in file.graph.node if node.op_type == "QuantizeLinear"] == ["relu", f"relu#{b}"]
    session = LiteRt().load(path, expose=["relu", f"relu#{b}"])
    values = dict(zip(session.outputs, session.run(n.draw()), strict=True))
    assert not np.array_equal(values["relu"], values[f"relu#{b}"])


def test_what_has_no_rule_is_named(tmp_path: Path) -> None:
    n = Network()
    x = n.input(1, 4, 4, 2)
    begin, end, strides = (n.constant(np.array(v, np.int32)) for v in ([0], [1], [1]))
    y = n.op("STRIDED_SLICE", [x, begin, end, strides], (1, 1, 4, 4, 2), like=x, newAxisMask=1)
    with pytest.raises(UnsupportedError, match="STRIDED_SLICE that adds dimensions"):
        qdq_of_litert(n.save(tmp_path / "net.tflite", y))


def test_data_become_what_the_file_takes(tmp_path: Path) -> None:
    """Float images with their channels first, ten at once, for a file of bytes that takes one, channels last."""
    n = Network()
    x = n.input(1, 4, 5, 3, grid=(0.5, 7))
    file = load_qdq(n.save(tmp_path / "net.tflite", n.op("RELU", [x], (1, 4, 5, 3))))
    (wanted,) = inputs_of(file)
    assert (wanted.shape, wanted.dtype, wanted.grid) == ((1, 4, 5, 3), np.int8, (np.float32(0.5), 7))
    assert output_step(file) == 1.0
    images = torch.randn(10, 3, 4, 5) * 40
    parts = list(fitted(file, [Batch((images,), torch.arange(10))]))
    assert [int(p.labels[0]) for p in parts if p.labels is not None] == list(range(10))
    together = torch.cat([p.inputs[0] for p in parts]).numpy()
    expected = np.clip(np.rint(images.numpy().transpose(0, 2, 3, 1) / 0.5) + 7, -128, 127)
    np.testing.assert_array_equal(together, expected.astype(np.int8))
    drawn = torch.cat([x for ((x,),) in random_inputs(file)])
    assert (drawn.dtype, tuple(drawn.shape), int(drawn.min()), int(drawn.max())) == (
        torch.int8,
        (32, 4, 5, 3),
        -128,
        127,
    )
