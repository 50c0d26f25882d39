"""What every bench tool prints and writes: a Markdown table, where it was measured, and JSON."""

import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from isobit.engines import ENGINES
from isobit.engines.instruction_set import instruction_set


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of text under a heading."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"### {self.title}", "", _line(self.columns), _line(["---"] * len(self.columns))]
        lines += [_line(row) for row in self.rows]
        return "\n".join([*lines, *([""] if self.notes else []), *(f"- {note}" for note in self.notes)])


def machine() -> str:
    """Instructions, cores, versions, and how busy the machine was: the load average of the last minute."""
    engines = [kind() for kind in ENGINES.values()]
    versions = [e.version() for e in engines if not e.missing()]
    return (
        f"{platform.machine()}, {instruction_set()}, {os.cpu_count()} cores, torch {torch.__version__}, "
        f"{', '.join(versions)}; load average {os.getloadavg()[0]:.1f}"
    )


def say(what: str) -> None:
    """What is being measured, for the person who waits."""
    print(f"… {what}", file=sys.stderr, flush=True)


def finish(tables: Sequence[Table], *, json_file: Path | None, records: Any, failed: Sequence[str] = ()) -> int:
    """Print the tables and what missed its bar, write the records; the exit code is 1 where a bar was missed."""
    for table in tables:
        print(table, end="\n\n")
    print(f"Machine: {machine()}.")
    for bar in failed:
        print(f"MISSED: {bar}")
    if json_file is not None:
        content = {"machine": machine(), "missed": list(failed), "tables": [asdict(t) for t in tables]}
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(content | {"records": records}, indent=1) + "\n")
    return 1 if failed else 0


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
