from pathlib import Path

import numpy as np
import pytest

from integer.graphs import QdqGraph
from isobit.core.errors import MissingExtraError
from isobit.engines import Fake, OnnxRuntime, OpenVino
from isobit.engines import onnxruntime as onnxruntime_engine
from isobit.engines import openvino as openvino_engine


def test_what_is_not_installed_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for engine, module in ((OnnxRuntime(), onnxruntime_engine), (OpenVino(), openvino_engine)):
        monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
        assert f"pip install 'isobit[{engine.name}]'" in engine.missing()
        with pytest.raises(MissingExtraError, match="pip install"):
            engine.load(tmp_path / "any.onnx")
        with pytest.raises(MissingExtraError, match="pip install"):
            engine.version()


def one_side_unquantized() -> QdqGraph:
    """An Add of which one input is not quantized: ONNX Runtime leaves the conv before it, and the Add, in float."""
    g = QdqGraph(1)
    x = g.qdq(g.input("batch", 4, 8, 8))
    a = g.qdq(g.conv(x, 4, 4, (1, 1)))
    b = g.conv(x, 4, 4, (1, 1))
    g.output(g.qdq(g.node("Add", [a, b])))
    return g


@pytest.mark.skipif(bool(OnnxRuntime().missing()), reason=OnnxRuntime().missing())
def test_silent_fallback_is_found(tmp_path: Path) -> None:
    g = one_side_unquantized()
    session = OnnxRuntime().load(g.save(tmp_path / "net.onnx"))
    convs = [n.name for n in g.nodes if n.op_type == "Conv"]
    (add,) = (n.name for n in g.nodes if n.op_type == "Add")
    assert convs[1] in session.float_islands()
    assert convs[0] not in session.float_islands()
    x = g.rng.standard_normal((1, 4, 8, 8)).astype(np.float32)
    assert session.run([x])[0].shape == (1, 4, 8, 8)
    # The Add is fused into the float conv (FusedConv), or stays an op of its own.
    assert add in session.float_islands() or ("FusedConv", "float32") in {
        (k.name, k.precision) for k in session.kernels()
    }


@pytest.mark.skipif(bool(OnnxRuntime().missing()), reason=OnnxRuntime().missing())
def test_without_optimization_it_is_the_float_simulation(tmp_path: Path) -> None:
    g = QdqGraph(3)
    x = g.qdq(g.input("batch", 4, 8, 8), scale=2**-5)
    g.output(g.qdq(g.node("Relu", [x]), scale=2**-4))
    path = g.save(tmp_path / "net.onnx")
    data = g.rng.standard_normal((2, 4, 8, 8)).astype(np.float32)
    session = OnnxRuntime(optimize=False).load(path)
    np.testing.assert_array_equal(session.run([data])[0], Fake().load(path).run([data])[0])
    assert {k.name for k in session.kernels()} == {"QuantizeLinear", "DequantizeLinear", "Relu"}
