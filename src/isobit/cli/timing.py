"""What `isobit latency` does with files, and the table of their times."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from isobit.analysis.alone import taken_by_file
from isobit.analysis.latency import time_files
from isobit.cli.loading import load_model
from isobit.cli.output import bullets
from isobit.cli.progress import Watch
from isobit.core.errors import EngineError, IsobitError, SettingError
from isobit.core.latency_table import FileTime
from isobit.core.records import to_json
from isobit.engines import ENGINES, Engine
from isobit.engines.latency import Clock
from isobit.recipes.latency_table import float_file
from isobit.recipes.portability import in_formats
from isobit.recipes.table import look_up

BATCHES = "1,32"
NO_SPEED = frozenset({"fake", "litert-reference"})
"""Engines that are there for what they compute, not for how fast: measured where they are named."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """The command line of `isobit latency`, with its names still to be loaded."""

    files: tuple[Path, ...]
    model: str | None
    weights: Path | None
    engines: str | None
    batch: str | None
    data: str | None
    target: str | None
    widths: tuple[str, ...]
    runs: int
    threads: int
    clock: Clock
    cache: Path | None


def run(job: Job, watch: Watch) -> list[FileTime]:
    """Time all files on all engines; with a network, its float file first."""
    if given := next((n for n, v in (("--bits", job.widths), ("--data", job.data), ("--target", job.target)) if v), ""):
        raise SettingError(f"{given} is of use with --layers: files are measured as they are")
    if not job.files:
        raise SettingError("name the files to measure, or give --layers and --model. See `isobit latency --help`")
    for path in job.files:
        taken_by_file(path)  # before anything that takes long: is it there, and what it should be?
    sizes = numbers(job.batch or BATCHES, "--batch")
    found: list[FileTime] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        files = {str(path): path for path in job.files}
        if job.model is not None:
            watch.stage("exporting the float network")
            files = {f"{job.model} in float": _float(job, job.files[0], folder), **files}
        formats = {name: stack.enter_context(in_formats(path)) for name, path in files.items()}
        for engine in engines_of(job):
            watch.stage(f"timing on {engine.name}")
            usable, refused = {}, []
            for name, to in formats.items():
                try:
                    usable[name] = to(engine.format)
                except IsobitError as error:
                    refused.append((name, str(error)))
            times = time_files(
                usable, engine, batch_sizes=sizes, threads=job.threads, runs=job.runs, clock=job.clock
            ) if usable else ()  # fmt: skip
            found += [*times, *_refusals(refused, engine, sizes, job)]
    return found


def _float(job: Job, like: Path, folder: Path) -> Path:
    """The float file of the network, for inputs such as a file takes."""
    assert job.model is not None
    example = []
    for shape, dtype in taken_by_file(like):
        sizes = (2, *shape[1:])
        kind = torch.from_numpy(dtype.type(0).reshape(1)).dtype
        example.append(torch.randn(sizes) if dtype.kind == "f" else torch.zeros(sizes, dtype=kind))
    return float_file(load_model(job.model, job.weights), tuple(example), folder / "float.onnx")


def _refusals(refused: Sequence[tuple[str, str]], engine: Engine, sizes: list[int], job: Job) -> Iterator[FileTime]:
    for name, why in refused:
        for size in sizes:
            yield FileTime(
                file=name, engine=engine.name, engine_version=engine.version(), runs=job.runs, batch=size,
                instruction_set=engine.instruction_set(), threads=job.threads, refused=why,
            )  # fmt: skip


def engines_of(job: Job) -> list[Engine]:
    """The engines that were named, or all that are installed, set to the threads. Raises EngineError, SettingError."""
    if job.threads < 1:
        raise SettingError(f"--threads is a whole number of at least 1, got {job.threads}")
    if job.clock == "cpu" and job.threads > 1:
        raise SettingError("--clock cpu adds the times of all threads up: it is of use with one")
    names = [n.strip() for n in (job.engines or "").split(",") if n.strip()]
    if not names or names == ["all"]:
        usable = [e for name, make in ENGINES.items() if name not in NO_SPEED and not (e := make()).missing()]
        if not usable:
            raise EngineError("no engine is installed. Install some with: pip install 'isobit[engines]'")
    else:
        usable = [look_up("engine", ENGINES, name)() for name in names]
        if missing := next((e.missing() for e in usable if e.missing()), ""):
            raise EngineError(missing)
    return [_with_threads(engine, job.threads) for engine in usable]


def _with_threads(engine: Engine, threads: int) -> Engine:
    if threads == 1:
        return engine
    try:
        return replace(engine, threads=threads)  # type: ignore[type-var]
    except TypeError as error:
        raise SettingError(f"{engine.name} has one thread: leave --threads out") from error


def numbers(text: str, option: str) -> list[int]:
    """`1,32` as numbers. Raises SettingError."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise SettingError(f"{option} is one or several whole numbers of at least 1, such as 1,32, got {text!r}")
    return [int(part) for part in parts]


def page(found: Sequence[FileTime]) -> list[RenderableType]:
    """One row for each engine, batch size and file."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("engine", "batch", "file", "median ms", "p99 ms", "samples/s", "speed", "in float"):
        table.add_column(heading, justify="left" if heading in ("engine", "file") else "right", overflow="fold")
    for row in found:
        if row.median_ms is None or row.p99_ms is None or row.throughput is None:
            table.add_row(row.engine, str(row.batch), row.file, Text("refused", style="red"))
            continue
        speed = "" if row.speedup is None else f"{row.speedup:.2f}"
        table.add_row(
            row.engine, str(row.batch), row.file, f"{row.median_ms:.3f}", f"{row.p99_ms:.3f}",
            f"{row.throughput:,.0f}", speed, str(row.in_float or "none"),
        )  # fmt: skip
    first = found[0]
    machines = dict.fromkeys(f"{row.engine_version} on {row.instruction_set}" for row in found)
    notes = [f"{', '.join(machines)}: {first.runs} runs in turns, {first.threads} thread(s)"]
    notes.append("speed: the time of the first file over this one's; in float: ops that the engine runs so")
    notes += dict.fromkeys(f"{row.file} on {row.engine}: {row.refused}" for row in found if row.refused)
    return [table, bullets(notes)]


def as_json(found: Sequence[FileTime]) -> dict[str, Any]:
    """The times for programs."""
    return {"latency": [to_json(row) for row in found]}
