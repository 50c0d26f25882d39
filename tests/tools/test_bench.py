"""The bench tools, each on a network that takes seconds; and their arithmetic on numbers made up here."""

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture(autouse=True)
def tools_are_importable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The tools import each other as scripts do: from their own folder."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.syspath_prepend(str(TOOLS))
    yield
    torch.set_num_threads(threads)
    for name in [n for n, m in sys.modules.items() if str(getattr(m, "__file__", None) or "").startswith(str(TOOLS))]:
        del sys.modules[name]


def run(tool: str, *arguments: str, out: Path) -> tuple[int, dict[str, Any]]:
    """A tool's exit code and what it wrote as JSON."""
    code = importlib.import_module(tool).main([*arguments, "--json", str(out / "out.json")])
    return code, json.loads((out / "out.json").read_text())


def test_targets_on_both_engines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("openvino")
    arguments = ("--network", "digits", "--limit", "20", "--targets", "onnxruntime-x86")
    code, found = run("bench_targets", *arguments, out=tmp_path)
    assert code == 0
    assert [(c["engine"], c["samples"]) for c in found["records"]] == [("onnxruntime", 20), ("openvino", 20)]
    assert found["records"][0]["verdict"] == "exact"
    shown = capsys.readouterr().out
    assert "| onnxruntime-x86 | onnxruntime | " in shown
    assert "load average" in shown


def test_a_target_runs_in_the_format_of_its_engines(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("ai_edge_litert")
    code, found = run("bench_targets", "--network", "digits", "--limit", "20", "--targets", "litert", out=tmp_path)
    assert code == 0
    engines = [(c["engine"], Path(c["file"]).suffix, c["verdict"]) for c in found["records"]]
    assert engines == [("litert", ".tflite", "exact"), ("litert-reference", ".tflite", "exact")]


def test_a_certificate_over_images_and_variants(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    bench = importlib.import_module("bench_targets")
    of = bench.subject("digits", 10)
    engine = bench.ENGINES["onnxruntime"]()
    (certificate,) = bench.certify(of, "onnxruntime-x86", [engine], tmp_path, samples=25)
    assert (certificate.samples, certificate.verdict) == (25, "exact")
    assert certificate.accuracy[0].total == 10
    variants = [x for (x,) in bench.crops_and_flips(of.evaluation, 15)]
    again = [x for (x,) in bench.crops_and_flips(of.evaluation, 15)]
    assert sum(len(x) for x in variants) == 15
    assert all(torch.equal(a, b) for a, b in zip(variants, again, strict=True))


def test_bars_of_the_target_table() -> None:
    bench = importlib.import_module("bench_targets")
    records = importlib.import_module("isobit.core.records")

    def certificate(target: str, right: int) -> object:
        accuracy = (records.Accuracy(execution="onnxruntime", right=right, total=1000),)
        return records.Certificate(
            file="", sha256="", target=target, engine="onnxruntime", engine_version="", instruction_set="",
            samples=1000, verdict="exact", accuracy=accuracy,
        )  # fmt: skip

    found = [certificate("tensorrt", 911), certificate("snpe", 912), certificate("tvm", 905), certificate("tvm", 904)]
    missed = bench.missed_bars("cifar10_resnet20", found)
    assert [text.split(":")[0] for text in missed] == ["tensorrt onnxruntime", "tvm onnxruntime"]


def test_mobilenet_on_digits(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    code, found = run("bench_mobilenet", "--network", "digits", "--targets", "snpe", "--limit", "40", out=tmp_path)
    assert code == 0
    (row,) = found["records"]["isobit"]
    assert (row["engine"], row["total"]) == ("onnxruntime", 40)
    assert min(row["right"], *found["records"]["rivals"].values()) > 30
    assert list(found["records"]["rivals"]) == ["quantize_static, per channel", "quantize_static, per tensor"]


def test_the_responsible_layers_add_up_and_the_worst_is_first() -> None:
    pytest.importorskip("sklearn")
    bench, mobilenet = (importlib.import_module(name) for name in ("bench_targets", "bench_mobilenet"))
    of = bench.subject("digits", 10)
    bad = {"layer_bits": {"conv1": (2, 8)}} if "conv1" in dict(of.net.named_modules()) else {}
    name = "conv1" if bad else next(n for n, m in of.net.named_modules() if isinstance(m, torch.nn.Conv2d))
    model = bench.isobit.quantize(of.net, of.calibration, target="snpe", layer_bits={name: (2, 8)})
    found = mobilenet.responsible(model, of.calibration, samples=8)
    assert found[0][0] == name
    assert 0.5 < sum(share for _, share in found) <= 1 + 1e-6


@pytest.mark.slow
def test_weights_alone_of_a_small_stack(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("onnxruntime")
    bench = importlib.import_module("bench_weight_only")
    kept = {e: tuple(f for f in forms if f.bits == 4 and not f.settings) for e, forms in bench.FORMS.items()}
    bench.FORMS.update(kept)
    arguments = ("--width", "64", "--layers", "2", "--rounds", "1", "--runs", "1", "--engines", "onnxruntime")
    code, found = run("bench_weight_only", *arguments, out=tmp_path)
    assert code == 0
    speeds, digits = ([r for r in found["records"] if key in r] for key in ("speed", "right"))
    assert {(r["form"], r["batch"]) for r in speeds} >= {("float", 1), ("onnxruntime-weights", 32)}
    assert all(r["speed"] == 1 for r in speeds if r["form"] == "float")
    sizes = {r["form"]: r["bytes"] for r in speeds}
    assert sizes["onnxruntime-weights"] < sizes["float"]
    assert min(r["right"] for r in digits) > 400
    assert "### 2 × Linear 64² on onnxruntime" in capsys.readouterr().out
    assert bench.LEVEL_0 not in bench.TARGETS


def test_latency_of_a_small_network(tmp_path: Path) -> None:
    arguments = ("--networks", "digits_resnet", "--shape", "1", "8", "8", "--batches", "1", "--images", "8")
    more = ("--rounds", "2", "--runs", "3", "--engines", "onnxruntime", "--clock", "cpu")
    _, found = run("bench_latency", *arguments, *more, out=tmp_path)
    assert [(r["tool"], r["rival"]) for r in found["records"] if "rival" in r] == [("isobit", "ort-minmax")]
    assert {r["tool"] for r in found["records"]} == {"isobit", "ort-minmax"}
    assert "nncf-onnx was left out: no --rival-python." in found["tables"][0]["notes"]


def test_latency_on_litert_and_why_there_is_no_rival(tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert")
    arguments = ("--networks", "digits_resnet", "--batches", "1", "2", "--images", "8", "--clock", "cpu")
    more = ("--rounds", "2", "--runs", "3", "--engines", "litert", "--litert-python", sys.executable)
    code, found = run("bench_latency", *arguments, *more, out=tmp_path)
    assert code == 0, "nobody is faster where nobody else is"
    assert [(r["tool"], r["batch"]) for r in found["records"]] == [("isobit", 1), ("isobit", 2)]
    (table,) = found["tables"]
    reason = "ai-edge made no file of digits_resnet: ModuleNotFoundError: No module named 'litert_torch'"
    assert reason in table["notes"]


def test_every_contest_has_a_target_and_rivals_that_exist() -> None:
    bench, rivals = importlib.import_module("bench_latency"), importlib.import_module("rivals")
    targets, engines = importlib.import_module("isobit.targets"), importlib.import_module("isobit.engines")
    assert set(bench.RIVALS) <= set(rivals.METHODS)
    assert {r for c in bench.CONTESTS.values() for r in c.rivals} == set(bench.RIVALS)
    for name, contest in bench.CONTESTS.items():
        assert contest.target in targets.TARGETS
        if name in engines.ENGINES and name != "inductor":
            assert name in targets.TARGETS[contest.target].engines
    assert bench.shape_of("cifar10_resnet20", None) == (3, 32, 32)
    assert bench.shape_of("vit_tiny", None) == (3, 224, 224)
    assert bench.shape_of("vit_tiny", [3, 32, 32]) == [3, 32, 32]
    assert set(bench.NETWORKS) <= set(bench.IMAGE_NETWORKS)


def test_ratios_are_taken_round_by_round() -> None:
    bench = importlib.import_module("bench_latency")
    times = [
        {("float", "f32"): 8.0, ("isobit", "f32"): 2.0, ("a", "f32"): 4.0, ("b", "f32"): 1.0},
        {("float", "f32"): 9.0, ("isobit", "f32"): 3.0, ("a", "f32"): 3.0, ("b", "f32"): 1.0},
        {("float", "f32"): 8.0, ("isobit", "f32"): 2.0, ("a", "f32"): 4.0, ("b", "f32"): 1.0},
    ]
    found = {row["tool"]: row for row in bench.rows("net", 1, times)}
    assert str(found["isobit"]["speed"]["f32"]) == "4.00 (3.00–4.00)"
    assert (found["isobit"]["rival"], str(found["isobit"]["against"])) == ("b", "0.50 (0.33–0.50)")
    assert found["a"]["ms"] == 4.0


@pytest.mark.slow
def test_cost_of_a_small_network(tmp_path: Path) -> None:
    arguments = ("--networks", "digits_resnet", "--shape", "1", "8", "8", "--limit", "8", "--repeat", "1")
    code, found = run("bench_ptq", *arguments, "--only", "isobit min_max", "ort-minmax", out=tmp_path)
    ours, rival = found["records"]
    assert (ours["tool"], rival["tool"]) == ("isobit min_max", "ort-minmax")
    for row in (ours, rival):
        assert 0 < row["wall"] <= row["to_file"]
        assert row["wall"] < row["process_wall"]
        assert 20 < row["before_mb"] <= row["peak_mb"]
    assert code == int(ours["wall"] > rival["wall"] or ours["to_file"] > rival["to_file"])


def test_bars_of_the_costs() -> None:
    bench = importlib.import_module("bench_ptq")

    def row(tool: str, wall: float, peak: float) -> dict[str, object]:
        return {"network": "n", "tool": tool, "wall": wall, "to_file": 2 * wall, "peak_mb": peak}

    rivals = [row("ort-minmax", 2.0, 10.0), row("ort-entropy", 9.0, 70.0), row("ort-percentile", 9.0, 80.0)]
    assert bench.missed_bars([row("isobit min_max", 2.0, 70.0), *rivals]) == []
    slow = bench.missed_bars([row("isobit min_max", 2.1, 60.0), row("isobit mse", 9.0, 71.0), *rivals])
    assert slow == [
        "n: wall 2.1 s, ort-minmax 2.0 s",
        "n: to_file 4.2 s, ort-minmax 4.0 s",
        "n: isobit mse 71 MB, a rival 70 MB",
    ]
