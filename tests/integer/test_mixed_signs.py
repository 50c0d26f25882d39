"""Convolutions and linear layers between unsigned and signed bytes: ONNX Runtime, integer by integer."""

import numpy as np
import pytest

from integer.graphs import QdqGraph
from isobit.integer import Reference

KINDS = [(np.uint8, np.int8), (np.int8, np.uint8), (np.int8, np.int8)]


@pytest.mark.parametrize("op", ["conv", "gemm"])
@pytest.mark.parametrize(("before", "behind"), KINDS, ids=lambda kind: kind.__name__)
def test_equal_to_onnx_runtime(op: str, before: type, behind: type) -> None:
    runtime = pytest.importorskip("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    g = QdqGraph(0, dtype=before)
    x = g.qdq(g.input("batch", *((3, 8, 8) if op == "conv" else (24,))), zero_point=3)
    g.dtype = behind
    y = g.conv(x, 3, 8) if op == "conv" else g.gemm(x, 24, 8)
    g.output(g.qdq(y, scale=0.5, zero_point=7))
    model = g.model()
    session = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    reference = Reference(model)
    assert [s.rule for s in reference.plan.steps if s.node.op in ("Conv", "Gemm")] == ["integer"]
    shape = [64, *(d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim[1:])]
    x_values = np.random.default_rng(0).normal(0, 2, shape).astype(np.float32)
    expected = session.run(None, {"x": x_values})[0]
    assert len(np.unique(expected)) > 20
    np.testing.assert_array_equal(reference.run([x_values]).outputs[0], expected)
