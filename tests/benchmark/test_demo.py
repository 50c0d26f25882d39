"""The demo: its numbers are those of the files it wrote, and the same seed gives the same integers."""

import dataclasses
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from isobit.benchmark.data import read_digits
from isobit.benchmark.demo import Demo, DemoResult, default_targets, run_demo
from isobit.core.errors import MissingExtraError, OutputError, UnknownNameError
from isobit.engines import OnnxRuntime, OpenVino
from isobit.integer.files import read_metadata

pytest.importorskip("sklearn")

SHORT = Demo(epochs=1, targets=("onnxruntime-x86",), samples=64)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> DemoResult:
    """A short demo: one epoch, one target."""
    return run_demo(tmp_path_factory.mktemp("demo") / "new" / "folder", SHORT)


def right(path: Path) -> int:
    """Digits that ONNX Runtime, called by hand, gets right."""
    [(x, y)] = read_digits("test").batched(1000)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    logits = np.asarray(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])
    return int((logits.argmax(1) == y.numpy()).sum())


def test_every_accuracy_is_that_of_the_file(result: DemoResult) -> None:
    assert [run.bits for run in result.runs] == [8, 4]
    assert result.float_accuracy.right == right(result.float_path)
    assert result.float_accuracy.total == 450
    for run in result.runs:
        found = {a.execution: a.right for a in run.certificate.accuracy}
        assert found["onnxruntime"] == right(run.path)
        assert set(found) == {"simulation", "reference", "onnxruntime"}
        assert run.certificate.samples == 450


def test_every_file_is_there_and_says_what_it_is(result: DemoResult) -> None:
    names = {p.name for p in result.folder.iterdir()}
    assert names == {"float.onnx", "onnxruntime-x86-8bit.onnx", "onnxruntime-x86-4bit.onnx", "report.html"}
    for run in result.runs:
        assert read_metadata(run.path)["isobit.integers_sha256"] == run.certificate.integers_sha256
        assert run.bytes == run.path.stat().st_size < result.float_bytes == result.float_path.stat().st_size
        assert run.latency.speedup == pytest.approx(run.latency.float_ms / run.latency.quantized_ms)
    page = result.report.read_text()
    assert all(f"Digits on onnxruntime-x86, {bits} bits" in page for bits in (8, 4))


def test_the_same_seed_gives_the_same_integers(result: DemoResult, tmp_path: Path) -> None:
    torch.manual_seed(77)
    torch.set_num_threads(2)
    try:
        again = run_demo(tmp_path / "again", dataclasses.replace(SHORT, bits=(8,)))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert again.runs[0].certificate.integers_sha256 == result.runs[0].certificate.integers_sha256
    assert again.runs[0].path.read_bytes() == result.runs[0].path.read_bytes()


def test_targets_follow_the_engines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(OpenVino, "missing", lambda _: "")
    assert default_targets() == ("onnxruntime-x86", "openvino-cpu")
    monkeypatch.setattr(OpenVino, "missing", lambda _: "not installed")
    assert default_targets() == ("onnxruntime-x86", "tensorrt")
    monkeypatch.setattr(OnnxRuntime, "missing", lambda _: "not installed")
    with pytest.raises(MissingExtraError, match=r"isobit\[demo\]"):
        run_demo(tmp_path / "demo")
    assert not (tmp_path / "demo").exists()


def test_what_cannot_work_is_refused_before_the_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    started = time.monotonic()
    with pytest.raises(OutputError, match="file/demo"):
        run_demo(tmp_path / "file" / "demo")
    with pytest.raises(UnknownNameError, match="tensorrt"):
        run_demo(tmp_path, dataclasses.replace(SHORT, targets=("tensort",)))
    assert time.monotonic() - started < 3


@pytest.mark.slow
def test_the_whole_demo_keeps_its_promises(tmp_path: Path) -> None:
    """Under a minute of processor time, above 97.5 % in float, and 8 bits lose at most one digit in a hundred."""
    import json
    import resource

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    script = "from isobit.cli import main; main()"
    command = [sys.executable, "-c", script, "demo", "--json", "-o", str(tmp_path / "demo")]
    found = json.loads(subprocess.check_output(command, text=True, stderr=subprocess.DEVNULL))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 60
    share = found["float"]["right"] / 450
    assert share > 0.975
    for run in found["runs"]:
        accuracy = {a["execution"]: a["right"] / a["total"] for a in run["certificate"]["accuracy"]}
        assert run["certificate"]["verdict"] != "broken"
        assert run["bits"] < 8 or min(accuracy.values()) > share - 0.01
