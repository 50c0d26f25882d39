"""What every engine of the table promises. The fake engine always runs; a real one where it is installed."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from integer.graphs import QdqGraph, small_network
from isobit.core.errors import EngineError
from isobit.core.litert_file import read_litert, serialized
from isobit.core.records import Kernel
from isobit.engines import ENGINES, Apart, Engine
from isobit.engines.instruction_set import instruction_set
from isobit.export import EXPORTERS
from isobit.export.litert import translate
from isobit.export.pt2e import translate as pt2e_of
from isobit.integer import quantized_tensors
from isobit.integer.files import load_qdq
from pt2 import changed

SLOW = {"inductor"}
"""Compiles each file for each batch size: a minute. What it computes is tested in tests/engines/test_pt2.py too."""


@pytest.fixture(
    params=[pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in sorted(ENGINES)]
)
def engine(request: pytest.FixtureRequest) -> Engine:
    engine = ENGINES[request.param]()
    if reason := engine.missing():
        pytest.skip(reason)
    if engine.format == "ncnn-int8":
        pytest.skip("ncnn takes neither zero points nor quantized sums, and shows none of its integers: test_ncnn.py")
    return engine


@pytest.fixture
def network(engine: Engine, tmp_path: Path) -> Path:
    return save(engine, small_network(), tmp_path / "network")


def save(engine: Engine, graph: QdqGraph, path: Path) -> Path:
    """A graph as a file of the format that an engine takes."""
    source = graph.save(path.with_suffix(".onnx"))
    if engine.format == "onnx":
        return source
    if engine.format == "pt2e":
        path = path.with_suffix(".pt2")
        path.write_bytes(pt2e_of(onnx.load(source), {}))
        return path
    path = path.with_suffix(".tflite")
    path.write_bytes(serialized(translate(onnx.load(source), {})))
    return path


def samples(n: int = 2, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, 3, 16, 16)).astype(np.float32)


def test_the_table_knows_the_name(engine: Engine) -> None:
    assert ENGINES[engine.name]() == engine
    assert engine.format in EXPORTERS
    assert any(c.isdigit() for c in engine.version())
    known = ("float32", instruction_set(onednn=False), instruction_set())
    assert engine.instruction_set() in known or (isinstance(engine, Apart) and engine.simulates)


def test_runs_any_batch_the_same_way(engine: Engine, network: Path) -> None:
    session = engine.load(network)
    x = samples(4)
    whole = session.run([x])[0]
    parts = np.concatenate([session.run([x[:1]])[0], session.run([x[1:]])[0]])
    assert whole.shape == (4, 5) and whole.dtype == np.float32
    np.testing.assert_array_equal(whole, parts)
    np.testing.assert_array_equal(whole, session.run([x])[0])


def test_outputs_lie_on_the_grid_near_the_float_network(engine: Engine, network: Path, tmp_path: Path) -> None:
    """The float32 simulation of the same file differs by a few steps at most, for any engine."""
    y = engine.load(network).run([samples(8)])[0]
    reference = ENGINES["fake"]().load(save(ENGINES["fake"](), small_network(), tmp_path / "fake")).run([samples(8)])[0]
    graph = load_qdq(network).graph
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    last = graph.node[-1]
    steps = y / constants[last.input[1]]
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-3)
    assert np.abs(y - reference).max() <= 3.5 * constants[last.input[1]]


def test_exposed_tensors_come_after_the_outputs_and_change_nothing(engine: Engine, network: Path) -> None:
    names = quantized_tensors(load_qdq(network))
    plain, session = engine.load(network), engine.load(network, expose=names)
    assert session.outputs == (*plain.outputs, *names)
    arrays = session.run([samples()])
    np.testing.assert_array_equal(arrays[0], plain.run([samples()])[0])
    assert all(a.dtype == (np.int8 if engine.format == "litert" else np.uint8) for a in arrays[1:])
    assert arrays[1].shape == (2, 3, 16, 16)


def test_kernels_and_float_islands(engine: Engine, network: Path) -> None:
    session = engine.load(network)
    kernels = session.kernels()
    assert kernels and all(isinstance(k, Kernel) and k.count > 0 for k in kernels)
    nodes = {n.name: n.op_type for n in load_qdq(network).graph.node}
    islands = session.float_islands()
    if engine.name in ("fake", "tvm"):
        assert [nodes[name] for name in islands].count("Conv") == 2
    else:
        assert islands == ()
        assert any(k.precision in ("uint8", "u8", "int8") and "conv" in k.name.lower() for k in kernels)


def test_a_float_network_is_all_islands(engine: Engine, tmp_path: Path) -> None:
    g = QdqGraph(0)
    w = g.constant("weight", g.rng.standard_normal((4, 3, 3, 3)).astype(np.float32))
    g.output(g.node("Conv", [g.input("batch", 3, 8, 8), w]))
    session = engine.load(save(engine, g, tmp_path / "float"))
    assert session.float_islands() in ((g.nodes[0].name,), (g.nodes[0].output[0],))
    assert {k.precision for k in session.kernels()} <= {"float32", "f32", "float16"}


def test_wrong_inputs(engine: Engine, network: Path) -> None:
    session = engine.load(network)
    with pytest.raises(EngineError, match="takes 1 inputs"):
        session.run([samples(), samples()])
    with pytest.raises(EngineError, match=r"'x' has to have the shape batch × 3 × 16 × 16, got \(2, 3, 16, 15\)"):
        session.run([samples()[..., :15]])
    with pytest.raises(EngineError, match="'x' has to be float32, got float64"):
        session.run([samples().astype(np.float64)])


def test_files_that_are_none(engine: Engine, network: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="there is no file"):
        engine.load(tmp_path / f"nothing{network.suffix}")
    whole = network.read_bytes()
    for name, content in {
        "truncated": whole[: len(whole) // 2],
        "empty": b"",
        "zip": b"PK\x03\x04" + bytes(range(256)),
        "text": b"hello, this is no model\n",
    }.items():
        path = tmp_path / f"{name}{network.suffix}"
        path.write_bytes(content)
        with pytest.raises(EngineError, match=r"truncated|not an ONNX file|not a LiteRT file"):
            engine.load(path)


def test_an_unknown_op_and_an_unknown_tensor(engine: Engine, network: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="no tensor 'nothing' to expose"):
        engine.load(network, expose=["nothing"])
    unknown = tmp_path / f"unknown{network.suffix}"
    if engine.format == "onnx":
        model = onnx.load(network)
        model.graph.node[0].op_type = "Convolve"
        onnx.save(model, unknown)
    elif engine.format == "pt2e":
        unknown.write_bytes(
            changed(network, lambda file: file["graph_module"]["graph"]["nodes"][-2].update(target="f"))
        )
    else:
        file = read_litert(network)
        file.operatorCodes[0].builtinCode = file.operatorCodes[0].deprecatedBuiltinCode = 32
        unknown.write_bytes(serialized(file))
    with pytest.raises(EngineError, match=r"unknown\.onnx|has no rule here|does not know the op f"):
        engine.load(unknown)
