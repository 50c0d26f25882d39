"""Latency: a quantized file against its float file, batch by batch size, on the same engine in one process."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from isobit.core.errors import SettingError
from isobit.core.records import Latency
from isobit.engines import Engine
from isobit.engines.latency import latency


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
