"""What commands print: tables and JSON on stdout, errors and progress on stderr."""

import contextlib
import json
import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from isobit.cli.progress import Watch, watching

FORMAT = 1
"""Version of the JSON that `--json` prints; a key that changes its meaning raises it."""

_WIDE = 120
"""Columns where stdout is no terminal and COLUMNS does not say otherwise."""

VERDICT_STYLES = {"exact": "bold green", "bounded": "bold yellow", "broken": "bold red"}

Cell = str | Text


def console() -> Console:
    """Stdout. Markup is off: names of layers may hold brackets."""
    wide = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    return Console(markup=False, highlight=False, emoji=False, width=_WIDE if wide else None)


def error_console() -> Console:
    """Stderr."""
    return Console(stderr=True, markup=False, highlight=False, emoji=False)


def print_error(text: str, *, label: str = "error: ") -> None:
    """One text on stderr; never wrapped where it goes to a file."""
    stderr = error_console()
    stderr.print(Text(label, style="bold red") + Text(text), soft_wrap=not stderr.is_terminal)


@contextlib.contextmanager
def working(*, debug: bool = False) -> Iterator[Watch]:
    """A progress display for long work.

    What the user's own code prints meanwhile goes to stderr, so that stdout holds the result alone. Warnings that
    other packages raise about themselves are shown with `debug` only.
    """
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings(), watching(error_console()) as watch:
        if not debug:
            warnings.simplefilter("ignore")
        yield watch


def print_json(value: dict[str, Any]) -> None:
    """The result as one JSON object, with its format's version first."""
    text = json.dumps({"format": FORMAT, **value}, indent=1, allow_nan=False, ensure_ascii=False)
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def facts(rows: Iterable[tuple[str, Sequence[Cell] | Cell]]) -> Table:
    """A column of names and, beside each, one or several lines."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in rows:
        lines = [value] if isinstance(value, (str, Text)) else list(value)
        for i, line in enumerate(lines):
            grid.add_row(name if i == 0 else "", line)
    return grid


def bullets(lines: Iterable[Cell]) -> Table:
    """Sentences with a hanging indent."""
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for line in lines:
        grid.add_row("•", line)
    return grid


def verdict_text(verdict: str, cause: str = "") -> Text:
    """EXACT in green, BOUNDED in yellow, BROKEN in red, and why."""
    text = Text(verdict.upper(), style=VERDICT_STYLES[verdict])
    return text + Text(f"  {cause}", style="none") if cause else text


def show(*parts: RenderableType) -> None:
    """Print tables and texts one after the other; without trailing spaces where they go to a file."""
    stdout = console()
    if stdout.is_terminal:
        stdout.print(*parts, sep="\n")
        return
    with stdout.capture() as captured:
        stdout.print(*parts, sep="\n")
    sys.stdout.write("".join(line.rstrip() + "\n" for line in captured.get().splitlines()))
    sys.stdout.flush()
