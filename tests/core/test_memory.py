"""Freed memory that stays with the process: no page is fetched twice."""

import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys
import torch
from isobit.core.memory import keep_freed_memory
if sys.argv[1] == "kept" and not keep_freed_memory():
    sys.exit(3)
for _ in range(3):
    torch.ones(1 << 24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(60):
    torch.ones(1 << 24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
"""Sixty times 64 MiB, which are 16,384 pages of 4 KiB each. Small pieces may split a kept block a few times."""


def faults(way: str) -> int:
    done = subprocess.run([sys.executable, "-c", SCRIPT, way], capture_output=True, text=True, check=False, timeout=120)
    if done.returncode == 3:
        pytest.skip("the C library is not glibc")
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_pages_are_fetched_once() -> None:
    kept, given_back = faults("kept"), faults("given back")
    if given_back < 50 * 16_384:
        pytest.skip(f"pages of this system are huge: {given_back} faults")
    assert kept < given_back / 5
