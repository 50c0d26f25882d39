"""Who does the runs of a matrix: processes of this machine. A run is a command, so that anyone can do it."""

import os
import subprocess
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

NOT_CONVERGED = 10
"""The exit code of `isobit train` for a run that did not converge: a result, not a failure."""

LOG = "run.log"
"""The file in a run's folder that holds what its command said."""

POLL = 0.2
"""Seconds between two looks at the processes."""

GRACE = 20.0
"""Seconds that a process has to end after it was asked to."""


@dataclass(frozen=True, slots=True)
class Job:
    """A run that is still to be done: a command that writes `record.json` into `folder`, as text alone."""

    name: str
    command: tuple[str, ...]
    folder: str


@dataclass(frozen=True, slots=True)
class Done:
    """A run that ended; `error` is empty where it has a result."""

    name: str
    error: str = ""


Workers = Callable[[Sequence[Job]], Generator[Done]]
"""Does all jobs and tells of each as it ends, in any order. Closing the generator ends what is under way."""


def in_processes(count: int) -> Workers:
    """Up to `count` processes at once. Several share the cores, unless OMP_NUM_THREADS says how many each has."""

    def work(jobs: Sequence[Job]) -> Generator[Done]:
        waiting, running = list(reversed(jobs)), list[tuple[Job, subprocess.Popen[bytes]]]()
        environment = dict(os.environ)
        if count > 1:
            environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
        try:
            while waiting or running:
                while waiting and len(running) < count:
                    job = waiting.pop()
                    running.append((job, start(job, environment)))
                ended = [(job, process) for job, process in running if process.poll() is not None]
                for job, process in ended:
                    running.remove((job, process))
                    yield Done(job.name, error_of(job, process.returncode))
                if not ended:
                    time.sleep(POLL)
        finally:
            end([process for _, process in running])

    return work


def start(job: Job, environment: dict[str, str] | None = None, directory: str | None = None) -> subprocess.Popen[bytes]:
    """Start the command; what it says goes to its log."""
    with (Path(job.folder) / LOG).open("wb") as log:
        return subprocess.Popen(job.command, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=directory)


def end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ask processes to end, and kill those that do not; the last checkpoint of each run stays."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + GRACE
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def error_of(job: Job, code: int) -> str:
    """What went wrong with a command that ended: the last line that it said, or nothing."""
    log = Path(job.folder) / LOG
    if code in (0, NOT_CONVERGED):
        missing = not (Path(job.folder) / "record.json").is_file()
        return f"it ended without a record in {job.folder}" if missing else ""
    lines = log.read_text(errors="replace").strip().splitlines()
    said = lines[-1].strip() if lines else "it said nothing"
    ended = f"signal {-code}" if code < 0 else f"exit code {code}"
    return f"{said} ({ended}; all it said is in {log})"
