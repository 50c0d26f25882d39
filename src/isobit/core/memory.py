"""The process's memory: what is freed can stay with the process, for good or for the length of a call."""

import ctypes
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4  # of malloc.h
NEVER = 2**31 - 1
GIVEN_BACK = {M_MMAP_MAX: 65_536, M_MMAP_THRESHOLD: 32 << 20, M_TRIM_THRESHOLD: 64 << 20}
"""Where glibc's own, moving thresholds end up after the first large tensor."""
SETTINGS = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")
"""Environment variables by which a user decides this."""

_lock = threading.Lock()
_state = {"calls": 0, "for good": False}


def keep_freed_memory() -> bool:
    """Tell glibc's malloc to keep what is freed, for the whole process; False where the C library is another one.

    A training step allocates and frees the same tensors again and again. Given back to the system in between, each
    page is fetched and cleared anew on first touch.
    """
    libc = _glibc()
    if libc is None:
        return False
    with _lock:
        _state["for good"] = True
        return _keep(libc)


@contextmanager
def freed_memory_stays() -> Iterator[None]:
    """As `keep_freed_memory`, within the block or decorated function; what was kept is given back at its end.

    Blocks may be nested and run in several threads. Does nothing where the environment says how malloc has to behave.
    """
    libc = None if any(name in os.environ for name in SETTINGS) else _glibc()
    if libc is None:
        yield
        return
    with _lock:
        _state["calls"] += 1
        if _state["calls"] == 1:
            _keep(libc)
    try:
        yield
    finally:
        with _lock:
            _state["calls"] -= 1
            if not _state["calls"] and not _state["for good"]:
                for option, value in GIVEN_BACK.items():
                    libc.mallopt(option, value)
                libc.malloc_trim(0)


def _keep(libc: ctypes.CDLL) -> bool:
    return bool(libc.mallopt(M_MMAP_MAX, 0) and libc.mallopt(M_TRIM_THRESHOLD, NEVER))


def _glibc() -> ctypes.CDLL | None:
    """The C library where it has `mallopt`; musl has none."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None
