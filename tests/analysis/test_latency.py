import numpy as np
import onnx
import pytest
import torch

from analysis.nets import mlp
from isobit.analysis import latency as module
from isobit.analysis.latency import compare_latency, time_files
from isobit.core.errors import EngineError, SettingError
from isobit.engines import ENGINES, Fake
from isobit.export import export_float
from isobit.graph.capture import capture
from isobit.recipes.workflow import export


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    model, x = mlp()
    net = capture(torch.nn.Linear(6, 4), x)
    return export_float(net, folder / "float.onnx", example=(x,)), export(model, folder / "int8.onnx").path


def test_each_batch_size_on_an_engine(files) -> None:
    engine = ENGINES["fake"]()
    x = np.zeros((3, 6), np.float32)
    found = compare_latency(*files, [x], engine=engine, batch_sizes=(1, 8), runs=3, note="idle")
    assert [(f.engine, f.batch, f.runs, f.threads, f.note) for f in found] == [
        ("fake", 1, 3, 1, "idle"), ("fake", 8, 3, 1, "idle"),
    ]  # fmt: skip
    for f in found:
        assert f.float_ms > 0.0
        assert f.speedup == pytest.approx(f.float_ms / f.quantized_ms)


def test_what_cannot_be_timed_is_refused(files, tmp_path) -> None:
    x = [np.zeros((1, 6), np.float32)]
    for sizes in ((), (0, 1)):
        with pytest.raises(SettingError, match="batch sizes of at least 1"):
            compare_latency(*files, x, engine=ENGINES["fake"](), batch_sizes=sizes)
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(files[0].read_bytes()[:50])
    with pytest.raises(EngineError, match="broken"):
        compare_latency(broken, files[1], x, engine=ENGINES["fake"]())


def test_a_table_of_files(files, tmp_path, monkeypatch) -> None:
    def made_up(jobs, *, runs, clock):
        for session, inputs in jobs:
            session.run(inputs)
        return [[2.0 * (k + 1)] * (runs - 1) + [100.0] for k in range(len(jobs))]

    monkeypatch.setattr(module, "in_turns", made_up)
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(files[0].read_bytes()[:50])
    named = {"float": files[0], "int8": files[1], "broken": broken}
    found = time_files(named, ENGINES["fake"](), batch_sizes=(1, 32), runs=101)
    assert [(f.file, f.batch, f.median_ms) for f in found] == [
        ("float", 1, 2.0), ("int8", 1, 4.0), ("broken", 1, None),
        ("float", 32, 2.0), ("int8", 32, 4.0), ("broken", 32, None),
    ]  # fmt: skip
    assert [f.throughput for f in found] == [500.0, 250.0, None, 16000.0, 8000.0, None]
    assert [f.speedup for f in found] == [1.0, 0.5, None, 1.0, 0.5, None]
    assert found[0].p99_ms == np.quantile([2.0] * 100 + [100.0], 0.99)
    assert found[0].in_float == 1
    assert "broken" in found[2].refused


def test_another_batch_than_the_files_own(tmp_path) -> None:
    x = np.zeros((2, 3), np.float32)
    value = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, x.shape) for n in ("x", "y")]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", value[:1], value[1:])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)]), tmp_path / "two.onnx")
    one, two = time_files({"two": tmp_path / "two.onnx"}, ENGINES["fake"](), batch_sizes=(1, 2), runs=2)
    assert "shape 2 × 3, got (1, 3)" in one.refused
    assert two.median_ms is not None and two.speedup == 1.0


def test_what_makes_no_table_of_files(files, monkeypatch) -> None:
    with pytest.raises(SettingError, match="a file at least"):
        time_files({}, ENGINES["fake"]())
    with pytest.raises(SettingError, match="batch sizes of at least 1"):
        time_files({"a": files[0]}, ENGINES["fake"](), batch_sizes=(0,))
    monkeypatch.setattr(Fake, "missing", lambda self: "not here")
    with pytest.raises(EngineError, match="not here"):
        time_files({"a": files[0]}, ENGINES["fake"]())
