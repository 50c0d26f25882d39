"""Latency of files, batch by batch size, on the same engine in one process: two against each other, or a table."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median

import numpy as np

from isobit.analysis.alone import Taken, drawn, taken_by_file
from isobit.core.errors import EngineError, IsobitError, SettingError
from isobit.core.latency_table import FileTime
from isobit.core.records import Latency
from isobit.engines import Engine, Session
from isobit.engines.latency import CLOCKS, Clock, Job, in_turns, latency


def compare_latency(
    float_path: Path | str,
    quantized_path: Path | str,
    inputs: Sequence[np.ndarray],
    *,
    engine: Engine,
    batch_sizes: Iterable[int] = (1,),
    threads: int = 1,
    runs: int = 20,
    note: str = "",
) -> tuple[Latency, ...]:
    """Load both files once and time them in turns at each batch size, on the first samples of `inputs`.

    Inputs are repeated where a batch is larger. `threads` is what `engine` was set to. Raises EngineError for a file
    that the engine refuses, SettingError for a batch size below 1.
    """
    sizes = list(batch_sizes)
    if not sizes or min(sizes) < 1:
        raise SettingError(f"latency needs batch sizes of at least 1, got {sizes}")
    sessions = engine.load(float_path), engine.load(quantized_path)
    found = []
    for size in sizes:
        chosen = [np.ascontiguousarray(x[np.arange(size) % len(x)]) for x in inputs]
        found.append(latency(*sessions, chosen, engine=engine.name, threads=threads, runs=runs, note=note))
    return tuple(found)


def time_files(
    files: Mapping[str, Path],
    engine: Engine,
    *,
    batch_sizes: Iterable[int] = (1, 32),
    threads: int = 1,
    runs: int = 100,
    clock: Clock = "wall",
) -> tuple[FileTime, ...]:
    """The time of each file at each batch size, all loaded at once and run in turns, on drawn inputs.

    The first file is what the others are compared with. `threads` is what `engine` was set to. A file that the engine
    refuses, or that has another batch fixed in it, gets a row that says so. Raises EngineError where the engine is
    missing, SettingError for no files, no runs, or a batch size below 1.
    """
    sizes = list(batch_sizes)
    if not sizes or min(sizes) < 1:
        raise SettingError(f"latency needs batch sizes of at least 1, got {sizes}")
    if not files:
        raise SettingError("latency needs a file at least")
    if why := engine.missing():
        raise EngineError(why)
    same = {
        "engine": engine.name, "engine_version": engine.version(), "instruction_set": engine.instruction_set(),
        "threads": threads, "runs": runs,
    }  # fmt: skip
    loaded: dict[str, tuple[Session, Taken]] = {}
    refused: dict[str, str] = {}
    for name, path in files.items():
        try:
            loaded[name] = (engine.load(path), taken_by_file(path))
        except IsobitError as error:
            refused[name] = str(error)
    found = []
    for size in sizes:
        jobs: dict[str, Job] = {}
        failed = dict(refused)
        for name, (session, taken) in loaded.items():
            inputs = drawn([((size, *shape[1:]), dtype) for shape, dtype in taken])
            try:
                session.run(inputs)
                jobs[name] = (session, inputs)
            except IsobitError as error:
                failed[name] = str(error)
        times = dict(zip(jobs, in_turns(list(jobs.values()), runs=runs, clock=CLOCKS[clock]), strict=True))
        first = next((median(times[name]) for name in files if name in times and name == next(iter(files))), None)
        for name in files:
            if name not in times:
                found.append(FileTime(file=name, batch=size, refused=failed[name], **same))  # type: ignore[arg-type]
                continue
            middle = median(times[name])
            found.append(
                FileTime(
                    file=name, batch=size, median_ms=middle, p99_ms=float(np.quantile(times[name], 0.99)),
                    throughput=1e3 * size / middle, speedup=None if first is None else first / middle,
                    in_float=len(loaded[name][0].float_islands()), **same,  # type: ignore[arg-type]
                )
            )  # fmt: skip
    return tuple(found)
