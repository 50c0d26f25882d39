"""The fuzzer on 40 of its 200 files of each format, and the fuzzer itself: it has to notice what it looks for."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "fuzz_files.py"
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits of memory and inotify are Linux's")


def fuzz(out: Path, *arguments: str) -> list[dict[str, object]]:
    done = subprocess.run(
        [sys.executable, str(TOOL), *arguments, "--json", str(out)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return list(json.loads(out.read_text())["records"])


def test_forty_files_are_refused_or_verified(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    found = fuzz(tmp_path / "out.json", "--every", "5")
    outcomes = Counter(str(f["outcome"]) for f in found)
    assert set(outcomes) == {"refused", "verified"}
    assert sum(outcomes.values()) == 40 and outcomes["refused"] >= 30
    assert all(str(f["text"]) for f in found)
    assert len({f["kind"] for f in found}) >= 10


def test_fifty_litert_files(tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert")
    found = fuzz(tmp_path / "out.json", "--every", "4", "--engines", "litert")
    outcomes = Counter(str(f["outcome"]) for f in found)
    assert set(outcomes) == {"refused", "verified"}
    assert sum(outcomes.values()) == 50 and outcomes["refused"] >= 20
    assert len({f["name"] for f in found}) >= 20


@pytest.mark.slow
def test_all_litert_files(tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert")
    found = fuzz(tmp_path / "out.json", "--engines", "litert", "litert-reference")
    assert len(found) == 400
    assert {f["outcome"] for f in found} == {"refused", "verified"}


@pytest.mark.slow
def test_all_files_on_both_engines(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("openvino")
    found = fuzz(tmp_path / "out.json", "--engines", "onnxruntime", "openvino")
    assert len(found) == 400
    assert {f["outcome"] for f in found} == {"refused", "verified"}


def child(tmp_path: Path, code: str) -> tuple[str, str]:
    """What the fuzzer says of a process that runs `code`, in a process of its own: it forks."""
    (tmp_path / "outside").mkdir(exist_ok=True)
    (tmp_path / "outside" / "secret.bin").write_bytes(b"secret")
    program = f"""
import os, sys
sys.path.insert(0, {str(TOOL.parent)!r})
from pathlib import Path
import fuzz_files
folder = Path({str(tmp_path)!r})
watched = fuzz_files.Watched(folder / "outside")
def work():
    fuzz_files.guard([sys.prefix + os.sep, sys.base_prefix + os.sep, "/proc/", "/usr/"])
    {code}
code, seconds, megabytes = fuzz_files.in_child(work, seconds=3, output=folder / "output")
print(*fuzz_files.judge(code, folder / "output", opened=watched.events()), sep="|")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    outcome, _, text = done.stdout.strip().splitlines()[-1].partition("|")
    return outcome, text


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        (f"os.kill(os.getpid(), {signal.SIGSEGV:d})", "crashed: SIGSEGV"),
        ("import time; time.sleep(30)", "hung"),
        ("os.write(2, b'error: no\\n'); return 6", "refused"),
        ("os.write(2, b'one\\nerror: two\\n'); return 6", "fault (exit code 6, 2 lines)"),
        ("os.write(2, b'error: isobit has a fault\\n'); return 70", "fault (exit code 70, 1 lines)"),
        ("return 0", "fault (exit code 0, 0 lines)"),
        ("raise MemoryError", "fault (exit code 99, "),
        ("open(folder / 'outside' / 'secret.bin').read(); os.write(2, b'error: no\\n'); return 6", "read outside"),
        ("os.system('cat ' + str(folder / 'outside' / 'secret.bin')); os.write(2, b'error: no\\n'); return 6",
         "read outside"),
    ],
)  # fmt: skip
def test_the_fuzzer_notices(code: str, outcome: str, tmp_path: Path) -> None:
    assert child(tmp_path, code)[0].startswith(outcome)


def test_memory_has_a_limit(tmp_path: Path) -> None:
    code = "x = bytearray(7 << 30); os.write(2, b'error: no\\n'); return 6"
    assert child(tmp_path, code)[0].startswith("fault (exit code 99")
    assert os.environ.get("TMPDIR") is None or Path(os.environ["TMPDIR"]).is_dir()
