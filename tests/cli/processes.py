"""The command line in a process of its own, stopped at a chosen moment."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

MAIN = "from isobit.cli import main; main()"

TAKE_CTRL_C = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
"""A shell's background job, such as a run of the tests, starts its children with Ctrl-C ignored."""

AT_SYNC = """
import os, pathlib, time
whole = os.fsync
def fsync(handle):
    n = len(list(pathlib.Path().glob("sync-*")))
    pathlib.Path(f"sync-{n}").touch()
    time.sleep(30 if n == STOP else 0)
    whole(handle)
os.fsync = fsync
"""
"""Each sync of a file leaves a mark, and that number STOP waits: the file is written, but not renamed yet."""

SLOW_DATA = """
import pathlib, time
import torch

def slow():
    for reading in range(9):
        if not pathlib.Path(f"reading-{reading}").exists():
            pathlib.Path(f"reading-{reading}").touch()
            break
    for i in range(4):
        yield torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(i))
        pathlib.Path(f"reading-{reading}-batch-{i}").touch()
        time.sleep(WAIT if reading == STOP else 0)
"""
"""Batches whose reading number STOP takes long."""


def start(script: str, *arguments: str) -> "subprocess.Popen[str]":
    """Run a script with the command line's arguments."""
    return subprocess.Popen(
        [sys.executable, "-c", TAKE_CTRL_C + script, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def stop_at(process: "subprocess.Popen[str]", mark: Path, number: signal.Signals) -> tuple[int, str, str]:
    """Send a signal as soon as the mark is there; gives exit code, stdout, stderr."""
    started = time.monotonic()
    while not mark.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() - started < 120
        time.sleep(0.02)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err
