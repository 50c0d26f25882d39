"""A bias that the file keeps in float: what engines make of it, integer by integer."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto

from integer.graphs import QdqGraph
from isobit.core.arithmetic import OPENVINO
from isobit.engines import OpenVino
from isobit.integer import Reference


def network(seed: int) -> ModelProto:
    """Convolutions and a linear layer with float biases, of which some lie in the middle of two steps."""
    g = QdqGraph(seed)
    x = g.qdq(g.input("batch", 3, 8, 8), scale=0.0625, zero_point=100)
    w, _ = g.weight((8, 3, 3, 3), axis=None)
    (scale,) = [n for n in g.constants if n.startswith("weight_scale")]
    g.constants[scale] = np.float32(0.0078125)
    middle = (g.rng.integers(-9000, 9000, 8) + 0.5) * 0.0625 * 0.0078125
    y = g.node("Conv", [x, w, g.constant("bias", middle.astype(np.float32))])
    y = g.qdq(g.node("Relu", [y]), scale=0.05, zero_point=0)
    w, _ = g.weight((8, 8, 3, 3))
    y = g.qdq(g.node("Conv", [y, w, g.constant("bias", g.rng.standard_normal(8).astype(np.float32))]), scale=0.3)
    w, _ = g.weight((5, 128))
    y = g.qdq(g.node("Flatten", [y], axis=1), like=y)
    y = g.node("Gemm", [y, w, g.constant("bias", g.rng.standard_normal(5).astype(np.float32))], transB=1)
    g.output(g.qdq(y, scale=0.5))
    return g.model()


@pytest.mark.parametrize("seed", range(5))
def test_equal_to_onnx_runtime(seed: int) -> None:
    runtime = pytest.importorskip("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    model = network(seed)
    session = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(seed).normal(0, 4, (64, 3, 8, 8)).astype(np.float32)
    reference = Reference(model)
    assert [s.rule for s in reference.plan.steps if s.node.op in ("Conv", "Gemm")] == ["integer"] * 3
    np.testing.assert_array_equal(reference.run([x]).outputs[0], session.run(None, {"x": x})[0])


def test_an_engine_that_adds_floats_does_not_round_it() -> None:
    model = network(0)
    plan = Reference(model, OPENVINO).plan
    biases = [n.inputs[2] for n in plan.graph.nodes if n.op in ("Conv", "Gemm")]
    assert len(biases) == 3
    for name in biases:
        np.testing.assert_array_equal(plan.constants[name].floats, plan.graph.constants[name])


@pytest.mark.parametrize("seed", range(3))
def test_equal_to_openvino(seed: int, tmp_path: Path) -> None:
    """It adds the floats as they are."""
    if missing := OpenVino().missing():
        pytest.skip(missing)
    onnx.save(network(seed), tmp_path / "net.onnx")
    x = np.random.default_rng(seed).normal(0, 4, (64, 3, 8, 8)).astype(np.float32)
    engine = OpenVino()
    (y,) = engine.load(tmp_path / "net.onnx").run([x])
    assert len(np.unique(y)) > 20
    np.testing.assert_array_equal(Reference(tmp_path / "net.onnx", engine.arithmetic).run([x]).outputs[0], y)
