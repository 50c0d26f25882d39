"""Stopped at any moment, a command leaves its files whole or not at all."""

import signal
from pathlib import Path

import pytest

from cli.processes import AT_SYNC, MAIN, SLOW_DATA, start, stop_at
from isobit.integer.files import read_metadata

ARGUMENTS = ("quantize", "nets.py:net", "-d", "slow.py:slow", "-t", "onnxruntime-x86", "-o", "out.onnx")
NEVER = "99"


def slow_data(folder: Path, *, stop: str) -> None:
    (folder / "slow.py").write_text(SLOW_DATA.replace("STOP", stop).replace("WAIT", "30"))


def left_over(folder: Path) -> list[str]:
    return [p.name for p in folder.iterdir() if "out.onnx" in p.name]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["kill -9", "Ctrl-C"])
def test_while_the_file_is_written(here: Path, number: signal.Signals) -> None:
    slow_data(here, stop=NEVER)
    (here / "out.onnx").write_text("of an earlier run")
    code, out, err = stop_at(start(AT_SYNC.replace("STOP", "0") + MAIN, *ARGUMENTS), here / "sync-0", number)
    assert (here / "out.onnx").read_text() == "of an earlier run"
    assert out == ""
    if number == signal.SIGINT:
        assert code == 130
        assert err.splitlines()[-1] == "interrupted; files that were not complete have been removed"
        assert "Traceback" not in err
        assert left_over(here) == ["out.onnx"]
    else:
        assert code == -signal.SIGKILL
        [part] = [name for name in left_over(here) if name != "out.onnx"]
        assert part.startswith(".out.onnx.") and part.endswith(".part")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["kill -9", "Ctrl-C"])
def test_while_it_calibrates(here: Path, number: signal.Signals) -> None:
    slow_data(here, stop="2")  # the network was tried on the first batch, and captured with it
    code, _, err = stop_at(start(MAIN, *ARGUMENTS), here / "reading-2-batch-1", number)
    assert code == (130 if number == signal.SIGINT else -signal.SIGKILL), err
    assert left_over(here) == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["kill -9", "Ctrl-C"])
def test_after_the_file_is_written(here: Path, number: signal.Signals) -> None:
    slow_data(here, stop="3")  # the verification reads the data again
    code, _, err = stop_at(start(MAIN, *ARGUMENTS), here / "reading-3-batch-1", number)
    assert code == (130 if number == signal.SIGINT else -signal.SIGKILL), err
    assert left_over(here) == ["out.onnx"]
    assert read_metadata(here / "out.onnx")["isobit.target"] == "onnxruntime-x86"


@pytest.mark.slow
@pytest.mark.parametrize("file", range(3), ids=["float.onnx", "quantized", "report"])
def test_the_demo_killed_while_it_writes(here: Path, file: int) -> None:
    pytest.importorskip("sklearn")
    demo = """
from isobit.benchmark.demo import Demo, run_demo
run_demo("demo", Demo(epochs=1, targets=("onnxruntime-x86",), bits=(8,)))
"""
    names = ["float.onnx", "onnxruntime-x86-8bit.onnx", "report.html"]
    code, _, err = stop_at(start(AT_SYNC.replace("STOP", str(file)) + demo), here / f"sync-{file}", signal.SIGKILL)
    assert code == -signal.SIGKILL, err
    left = {p.name for p in (here / "demo").iterdir()}
    assert left & set(names) == set(names[:file])
    assert len(left) == file + 1
    assert read_metadata(here / "demo" / names[1]) if file == 2 else True
