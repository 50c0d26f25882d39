"""The reference against the real ONNX Runtime, integer by integer: not one mismatch in any QuantizeLinear output."""

from pathlib import Path

import numpy as np
import pytest

from integer.cases import CASES, Case, samples
from integer.graphs import QdqGraph
from isobit.core.arithmetic import FLOAT32
from isobit.engines import OnnxRuntime
from isobit.engines.instruction_set import saturates_pairs
from isobit.integer import quantized_tensors, run_reference

pytestmark = [
    pytest.mark.skipif(bool(OnnxRuntime().missing()), reason=OnnxRuntime().missing() or "installed"),
    pytest.mark.skipif(
        saturates_pairs(OnnxRuntime().instruction_set()), reason="pairs of products saturate on this processor"
    ),
    pytest.mark.skipif(
        OnnxRuntime().instruction_set().startswith("NEON"), reason="the formulas are those of the kernels for x86"
    ),
]

KINDS = {"asymmetric": {}, "zero_point_128": {"zero_point": 128}}


def compare(case: Case, seed: int, path: Path, *, batch: int = 2, **kind: object) -> int:
    """How many integers were compared; every one is equal."""
    g = QdqGraph(seed, **kind)
    case(g)
    g.save(path)
    names = quantized_tensors(path)
    inputs = samples(g, batch=batch, seed=seed)
    plain, session = OnnxRuntime().load(path), OnnxRuntime().load(path, expose=names)
    engine = dict(zip(session.outputs, session.run(inputs), strict=True))
    reference = run_reference(path, inputs, FLOAT32)
    for name in names:
        assert engine[name].dtype == reference.integers[name].dtype
        np.testing.assert_array_equal(reference.integers[name], engine[name], err_msg=f"{case.__name__} {seed} {name}")
    # What is exposed does not change what is computed.
    np.testing.assert_array_equal(reference.outputs[0], plain.run(inputs)[0])
    assert reference.exact
    return sum(engine[name].size for name in names)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_every_integer_is_equal(case: Case, kind: str, tmp_path: Path) -> None:
    assert sum(compare(case, seed, tmp_path / "net.onnx", **KINDS[kind]) for seed in range(3)) > 100


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_every_integer_is_equal_on_many_graphs(case: Case, kind: str, tmp_path: Path) -> None:
    for seed in range(100, 150):
        compare(case, seed, tmp_path / "net.onnx", batch=1 + seed % 4, **KINDS[kind])


SIGNED = ("add", "add_relu", "multiply", "global_average", "average", "sigmoid", "leaky_relu", "softmax", "concat_same")


def concat_same(g: QdqGraph) -> None:
    a, b = g.qdq(g.input("batch", 3, 6, 6)), g.qdq(g.input("batch", 2, 6, 6, name="y"))
    g.output(g.qdq(g.node("Concat", [a, b], axis=1)))


@pytest.mark.parametrize("name", SIGNED)
def test_signed_activations(name: str, tmp_path: Path) -> None:
    """ONNX Runtime has integer kernels for these ops on int8 too, which it rewrites as uint8 first.

    Only the outputs are compared: a tensor that is exposed stays int8, and then Add and Mul break ties otherwise.
    Convolutions of int8 are computed in float.
    """
    case = next((c for c in CASES if c.__name__ == name), concat_same)
    for seed in range(5):
        g = QdqGraph(seed, dtype=np.int8)
        case(g)
        path, inputs = g.save(tmp_path / "net.onnx"), samples(g, batch=8, seed=seed)
        session, reference = OnnxRuntime().load(path), run_reference(path, inputs)
        assert reference.exact and not session.float_islands()
        np.testing.assert_array_equal(reference.outputs[0], session.run(inputs)[0])
