"""Progress on stderr: a bar with the time left in a terminal, a line every few seconds elsewhere."""

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Protocol, final

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, Task, TaskID, TextColumn
from rich.text import Text

from isobit.report.numbers import duration

QUIET = 2.0
"""Seconds that a step may take before a line tells of it."""

EVERY = 5.0
"""Seconds between two lines."""


class Watch(Protocol):
    """Told what is being done: `stage` names work without steps, the call is `isobit.core.progress.Progress`."""

    def __call__(self, what: str, done: int, total: int | None) -> None:
        """`done` of `total` steps of `what` are done."""

    def stage(self, what: str) -> None:
        """From now on `what` is being done, and how far it is cannot be said."""


@contextlib.contextmanager
def watching(console: Console) -> Iterator[Watch]:
    """Show progress until the block ends, in the form that fits where stderr goes."""
    if console.is_terminal:
        bar = BarColumn(bar_width=24)
        columns = (SpinnerColumn(), TextColumn("{task.description}"), bar, Remaining())
        with Progress(*columns, console=console, transient=True) as progress:
            yield Bar(progress)
    else:
        lines = Lines(console)
        with lines:
            yield lines


class Remaining(TextColumn):
    """`12/64, 8 s left`; the time so far where that cannot be said."""

    def __init__(self) -> None:
        super().__init__("")

    def render(self, task: Task) -> Text:
        """See rich.progress.ProgressColumn."""
        done, left, so_far = int(task.completed), task.time_remaining, task.elapsed or 0.0
        if task.total is None:
            steps = f"{done}, " if done else ""
            return Text(f"{steps}{so_far:.0f} s")
        return Text(f"{done}/{task.total:.0f}, " + (f"{so_far:.0f} s" if left is None else f"{_rounded(left)} left"))


def _rounded(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 60 else duration(seconds)


@final
class Bar:
    """One bar at a time, by rich."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._what = ""
        self._task: TaskID | None = None

    def __call__(self, what: str, done: int, total: int | None) -> None:
        """See Watch."""
        self._switch(what, total)
        if self._task is not None:
            self._progress.update(self._task, completed=done, total=total)

    def stage(self, what: str) -> None:
        """See Watch."""
        self._switch(what, None)

    def _switch(self, what: str, total: int | None) -> None:
        if what == self._what:
            return
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._what, self._task = what, self._progress.add_task(what, total=total)


@final
class Lines:
    """A thread prints a line when a step has taken `QUIET` seconds, and then every `EVERY` seconds."""

    def __init__(self, console: Console, *, quiet: float = QUIET, every: float = EVERY) -> None:
        self._console, self._quiet, self._every = console, quiet, every
        self._what, self._done, self._total = "", 0, 0
        self._started = self._printed = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Lines":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def __call__(self, what: str, done: int, total: int | None) -> None:
        """See Watch."""
        self._switch(what)
        self._done, self._total = done, total or 0

    def stage(self, what: str) -> None:
        """See Watch."""
        self._switch(what)

    def _switch(self, what: str) -> None:
        if what != self._what:
            self._what, self._done, self._total = what, 0, 0
            self._started = time.monotonic()

    def _watch(self) -> None:
        while not self._stop.wait(min(self._quiet, self._every) / 8):
            now = time.monotonic()
            if self._what and now - self._started >= self._quiet and now - self._printed >= self._every:
                self._printed = now
                self._console.print(self._line(now - self._started), soft_wrap=True)

    def _line(self, seconds: float) -> str:
        if not self._done or not self._total:
            steps = f" {self._done}" if self._done else ""
            return f"{self._what}{steps}, {_rounded(seconds)} so far"
        left = seconds / self._done * (self._total - self._done)
        return f"{self._what} {self._done}/{self._total}, {_rounded(left)} left"
