"""Freed memory that stays with the process: no page is fetched twice."""

import os
import subprocess
import sys

import pytest

from isobit.core.memory import SETTINGS

SCRIPT = """
import resource, sys
import torch
from isobit.core.memory import _glibc, freed_memory_stays, keep_freed_memory
if _glibc() is None:
    sys.exit(3)
def faults():
    for _ in range(10):
        torch.ones(1 << 24)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        torch.ones(1 << 24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
if sys.argv[1] == "for good":
    assert keep_freed_memory()
    with freed_memory_stays():
        pass
    print(faults())
elif sys.argv[1] == "within a block":
    with freed_memory_stays():
        with freed_memory_stays():
            pass
        print(faults())
        held = resident()
    assert held - resident() > 3 << 24, "it is given back at the end"
else:
    with freed_memory_stays():
        torch.ones(1 << 24)
    print(faults())
"""
"""Eight times 64 MiB, which are 16,384 pages of 4 KiB each. Small pieces may split a kept block a few times."""


def faults(way: str, **environment: str) -> int:
    command = [sys.executable, "-c", SCRIPT, way]
    env = {name: value for name, value in os.environ.items() if name not in SETTINGS} | environment
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=env)
    if done.returncode == 3:
        pytest.skip("the C library is not glibc")
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.fixture(scope="module")
def given_back() -> int:
    found = faults("given back")
    if found < 6 * 16_384:
        pytest.skip(f"pages of this system are huge: {found} faults")
    return found


@pytest.mark.parametrize("way", ["for good", "within a block"])
def test_pages_are_fetched_once(way: str, given_back: int) -> None:
    assert faults(way) < given_back / 5


def test_the_environment_decides(given_back: int) -> None:
    """What a user says to malloc counts: here, that each large block is given back."""
    with pytest.raises(AssertionError, match="it is given back at the end"):
        faults("within a block", MALLOC_TRIM_THRESHOLD_="131072")
