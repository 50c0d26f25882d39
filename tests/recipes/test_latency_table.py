"""Tables of layers: what is measured, what is kept, and the arithmetic on times that are made up here."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

from isobit.analysis.latency_cache import LatencyCache
from isobit.core.errors import EngineError, SettingError, UnsupportedError
from isobit.engines import ENGINES, Fake, LiteRt, OnnxRuntime, OpenVino
from isobit.engines.latency import Job
from isobit.recipes import latency_table as module
from isobit.recipes.latency_table import TableSettings, at_widths, float_file, kinds_of, latency_table
from isobit.recipes.recipe import recipe_of

needs_onnxruntime = pytest.mark.skipif(bool(OnnxRuntime().missing()), reason=OnnxRuntime().missing())


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU6(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU6(),
        nn.Conv2d(8, 8, 3, padding=1), nn.ReLU6(), nn.Flatten(), nn.Linear(288, 10),
    ).eval()  # fmt: skip


def data() -> list[torch.Tensor]:
    return [torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))]


def made_up(jobs: Sequence[Job], *, runs: int, warmup: int = 3, clock: Callable[[], float]) -> list[list[float]]:
    """A call takes 1 ms, the k-th file behind it k + 1 ms."""
    return [[1.0 + k] * runs for k in range(len(jobs))]


def test_a_table_of_the_evaluator_adds_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "in_turns", made_up)
    recipe = recipe_of(target="onnxruntime-x86")
    table = latency_table(network(), data(), recipe, Fake(), TableSettings(widths=((8, 8), (4, 8)), runs=3))
    names = [row.name for row in table.layers]
    assert [n for n in names if n in ("0", "3", "5", "8")] == ["0", "3", "5", "8"]
    assert [(n.weight_bits, n.activation_bits) for n in table.network] == [(8, 8), (4, 8), (32, 32)]
    assert [n.ms for n in table.network] == [1.0, 2.0, 3.0]
    convolution = next(row for row in table.layers if row.name == "3")
    assert convolution.ops == ("3", "4")
    # Each width is tried in two forms, channels first and last, in this order: 1, 2 | 3, 4 | 5, 6 ms more than a call.
    assert [t.ms for t in convolution.times] == [1.0, 3.0, 5.0]
    assert [t.held for t in convolution.times] == [False] * 3
    for n in table.network:
        w, a = n.weight_bits, n.activation_bits
        total = sum(table.seconds(name, w, a) for name in names)
        assert total == pytest.approx(n.layers_ms / 1e3)
        assert sum(table.share(name, w, a) for name in names) == pytest.approx(n.ms / 1e3)
    assert table.seconds("4", 8, 8) == 0, "a ReLU6 is computed with its convolution"


def test_a_layer_is_measured_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    loads: list[str] = []
    load = Fake.load

    def counted(self: Fake, path: Path, *, expose: Sequence[str] = ()) -> object:
        loads.append(Path(path).name)
        return load(self, path, expose=expose)

    monkeypatch.setattr(Fake, "load", counted)
    recipe = recipe_of(target="onnxruntime-x86")
    first = latency_table(
        network(), data(), recipe, Fake(), TableSettings(runs=1), cache=LatencyCache(tmp_path / "c.json")
    )
    assert {row.name: row.times[0].held for row in first.layers}["5"], "the second of two equal layers"
    assert not {row.name: row.times[0].held for row in first.layers}["3"]
    loads.clear()
    again = latency_table(
        network(), data(), recipe, Fake(), TableSettings(runs=1), cache=LatencyCache(tmp_path / "c.json")
    )
    assert loads == ["whole.onnx", "whole.onnx", "part.onnx"], "the whole files, and the call that does nothing"
    assert all(t.held for row in again.layers for t in row.times)
    assert [[t.ms for t in r.times] for r in again.layers] == [[t.ms for t in r.times] for r in first.layers]


@needs_onnxruntime
def test_onnxruntime_says_what_it_runs_in_float() -> None:
    recipe = recipe_of(target="onnxruntime-x86")
    table = latency_table(network(), data(), recipe, OnnxRuntime(), TableSettings(widths=((8, 8), (4, 4)), runs=2))
    assert table.in_float("3", 8, 8) == ()
    assert table.in_float("3", 4, 4) == ("Conv",), "a ReLU6 inside a range of 4 bits keeps it from fusing"
    assert table.seconds("3", 8, 8) > 0 and table.seconds("3", 32, 32) > 0
    assert (table.engine, table.batch, table.target) == ("onnxruntime", 1, "onnxruntime-x86")
    assert table.whole(8, 8).left_out == ()


@pytest.mark.parametrize(("target", "engine"), [("openvino-cpu", OpenVino()), ("litert", LiteRt())])
def test_other_engines(target: str, engine: OpenVino | LiteRt) -> None:
    if engine.missing():
        pytest.skip(engine.missing())
    table = latency_table(network(), data(), recipe_of(target=target), engine, TableSettings(batch=2, runs=2))
    assert [row.name for row in table.layers if row.name.isdigit()][:1] == ["0"]
    assert all(t.ms is not None and t.ms >= 0 for row in table.layers for t in row.times)
    assert table.in_float("3", 8, 8) == ()


def test_what_makes_no_table(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_of(target="onnxruntime-x86")
    with pytest.raises(SettingError, match="at least 1"):
        TableSettings(runs=0)
    with pytest.raises(SettingError, match="widths of 1 to 16 bits, got W32A32"):
        TableSettings(widths=((32, 32),))
    with pytest.raises(SettingError, match="computes with"):
        latency_table(network(), data(), recipe, Fake(), TableSettings(widths=((16, 16),)))
    monkeypatch.setattr(Fake, "format", property(lambda self: "pte"))
    with pytest.raises(UnsupportedError, match="cannot be taken apart"):
        latency_table(network(), data(), recipe, Fake())
    monkeypatch.setattr(Fake, "missing", lambda self: "not here")
    with pytest.raises(EngineError, match="not here"):
        latency_table(network(), data(), recipe, Fake())


def test_the_recipe_at_other_widths_has_no_wider_edges() -> None:
    found = at_widths(recipe_of(target="onnxruntime-x86", reconstruction="brecq"), (4, 6))
    assert (found.weight_bits, found.activation_bits, found.reconstruction) == (4, 6, "none")
    assert found.rules().bits_of("any.layer") == (4, 6)
    assert at_widths(recipe_of(target="onnxruntime-dynamic"), (4, 8)).layer_bits == {"*": 4}


def test_the_float_file_has_the_names_of_the_layers(tmp_path: Path) -> None:
    import onnx

    (x,) = data()
    file = onnx.load(float_file(network(), (x,), tmp_path / "float.onnx"))
    assert [n.name for n in file.graph.node][:4] == ["0", "2", "3", "4"]
    session = ENGINES["fake"]().load(tmp_path / "float.onnx")
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(session.run([x.numpy()])[0]), network()(x), rtol=1e-4, atol=1e-5)
    assert kinds_of(["0", "nothing"], file, ["0", "2"]) == ("Conv",)
    assert kinds_of(["0"], file, ["3"]) == ()
