import numpy as np
import pytest
import torch

from analysis.nets import mlp
from isobit.analysis.latency import compare_latency
from isobit.core.errors import EngineError, SettingError
from isobit.engines import ENGINES
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
