"""A worker process: another environment's Python that runs one file, and a pipe to ask it."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import IO, Any, final

import numpy as np

from isobit.core.errors import EngineError
from isobit.core.onnx_file import first_line

SERVE = Path(__file__).parent / "workers" / "serve.py"
"""What the other Python runs; its docstring describes the messages."""

_LINE = 1 << 24
"""Bytes that the line in front of an answer has at most."""

_ARRAYS = 1 << 32
"""Bytes that the arrays of an answer have at most."""

Answer = tuple[dict[str, Any], list[np.ndarray]]


@final
class WorkerProcess:
    """One process, for one file. It ends with this object, with `close`, or with the process that started it."""

    def __init__(self, engine: str, python: Path, script: Path, *, threads: int = 1) -> None:
        self._engine = engine
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - it is open for as long as the process runs
        # PYTHONPATH and its like belong to this Python; -s leaves the user's own packages out.
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON") and k != "VIRTUAL_ENV"}
        try:
            self._process = subprocess.Popen(
                [str(python), "-s", str(SERVE), str(script)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                env={**environment, "OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"},
                start_new_session=True,  # what it starts itself, a compiler for instance, ends with it
            )
        except OSError as error:
            self._log.close()
            raise EngineError(f"the Python of {engine} cannot be started: {first_line(error)}") from error
        self._finalize = weakref.finalize(self, _end, self._process, self._log)

    def ask(self, header: dict[str, Any], arrays: Sequence[np.ndarray] = (), *, timeout: float) -> Answer:
        """Send a request and wait for its answer.

        Raises EngineError where the engine raised, and where the process died, said nothing for `timeout` seconds or
        answered what is none: it is ended then, and every further request raises.
        """
        if not self._finalize.alive:
            raise EngineError(f"{self._engine}'s process has ended: load the file again")
        found: list[Answer | Exception] = []
        thread = threading.Thread(target=self._exchange, args=(header, arrays, found), daemon=True)
        thread.start()
        try:
            thread.join(timeout)
            late = thread.is_alive()
        except BaseException:
            self.close()
            raise
        if late:
            said = self._last_line()
            self.close()
            thread.join()
            raise EngineError(f"{self._engine} did not answer within {timeout:g} seconds{said}")
        if isinstance(found[0], Exception):
            raise self._broken(found[0]) from found[0]
        answer, outputs = found[0]
        if "error" in answer:
            raise EngineError(first_line(Exception(str(answer["error"]))))
        return answer, outputs

    def close(self) -> None:
        """End the process, at once."""
        self._finalize()

    def _exchange(self, header: dict[str, Any], arrays: Sequence[np.ndarray], found: list[Answer | Exception]) -> None:
        """Fill `found` with the answer or with what went wrong: this runs in a thread of its own."""
        try:
            assert self._process.stdin is not None and self._process.stdout is not None
            whole = [np.ascontiguousarray(x).reshape(x.shape) for x in arrays]
            line = json.dumps({**header, "arrays": [[x.dtype.str, list(x.shape)] for x in whole]})
            for part in (line.encode() + b"\n", *(x.tobytes() for x in whole)):
                self._process.stdin.write(part)
            self._process.stdin.flush()
            found.append(_answer(self._process.stdout))
        except Exception as error:
            found.append(error)

    def _broken(self, error: Exception) -> EngineError:
        """The process died (it has a moment to do so), or answered what is no answer; it is ended."""
        try:
            code = self._process.wait(2)
        except subprocess.TimeoutExpired:
            code = None
        said = self._last_line()
        self.close()
        if code is None:
            return EngineError(f"{self._engine}'s process answered what isobit does not understand: {error}{said}")
        end = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return EngineError(f"{self._engine}'s process died ({end}){said}")

    def _last_line(self) -> str:
        """The last line that the process wrote about its troubles, as the end of a sentence."""
        with contextlib.suppress(OSError, ValueError):
            size = self._log.seek(0, os.SEEK_END)
            self._log.seek(max(0, size - 4096))
            lines = [line.strip() for line in self._log.read().decode(errors="replace").splitlines() if line.strip()]
            return f"; it said last: {lines[-1][:300]}" if lines else ""
        return ""


def _answer(stream: IO[bytes]) -> Answer:
    """Read one answer. Raises ValueError for anything else, EOFError where the stream ends."""
    line = stream.readline(_LINE)
    if not line:
        raise EOFError("no answer")
    try:
        header = json.loads(line)
        shapes = [(np.dtype(str(dtype)), [int(size) for size in shape]) for dtype, shape in header.pop("arrays")]
        total = sum(dtype.itemsize * prod(shape) for dtype, shape in shapes)
        right = all(dtype.kind in "biuf" and min(shape, default=0) >= 0 for dtype, shape in shapes)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{line[:60]!r}") from error
    if not right or total > _ARRAYS:
        raise ValueError(f"arrays of {line[:60]!r}")
    arrays = []
    for dtype, shape in shapes:
        size = dtype.itemsize * prod(shape)
        content = stream.read(size)
        if len(content) < size:
            raise EOFError("a truncated answer")
        arrays.append(np.frombuffer(bytearray(content), dtype).reshape(shape))
    return header, arrays


def _end(process: "subprocess.Popen[bytes]", log: IO[bytes]) -> None:
    """Kill a process and what it started, and wait for it."""
    with contextlib.suppress(OSError):
        if sys.platform == "win32":
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for stream in (process.stdin, process.stdout, log):
        with contextlib.suppress(OSError):
            if stream is not None:
                stream.close()
