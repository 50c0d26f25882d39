"""Latency: two files on the same engine, timed in turns in one process."""

import random
from collections.abc import Callable, Sequence
from statistics import median
from time import perf_counter, process_time
from typing import Literal

import numpy as np

from isobit.core.errors import SettingError
from isobit.core.records import Latency
from isobit.engines.apart import ApartSession
from isobit.engines.base import Session

Clock = Literal["wall", "cpu"]

CLOCKS: dict[Clock, Callable[[], float]] = {"wall": perf_counter, "cpu": process_time}
"""What measures: with `cpu` the time of this process alone counts, for one thread on a machine that others use too."""

Job = tuple[Session, Sequence[np.ndarray]]
"""A session and its inputs."""


def interleaved(
    sessions: Sequence[Session],
    inputs: Sequence[np.ndarray],
    *,
    runs: int = 20,
    warmup: int = 3,
    clock: Callable[[], float] = perf_counter,
) -> list[list[float]]:
    """The milliseconds of every run of every session on the same inputs, as `in_turns` measures them."""
    return in_turns([(session, inputs) for session in sessions], runs=runs, warmup=warmup, clock=clock)


def in_turns(
    jobs: Sequence[Job],
    *,
    runs: int = 20,
    warmup: int = 3,
    clock: Callable[[], float] = perf_counter,
) -> list[list[float]]:
    """The milliseconds of every run of every job, taken in turns: what slows the machine down hits all alike.

    Each turn has another order, and in front of each run stands one that does not count: a job that always follows the
    same one would pay for what that leaves in the caches. So these are times of a program that runs one file. With one
    thread, `time.process_time` as `clock` leaves out the time in which other processes had the core. Where a worker
    process runs the file, its own time counts, without the pipe.
    """
    if runs < 1:
        raise SettingError(f"latency needs at least 1 run, got {runs}")
    for session, inputs in jobs:
        for _ in range(warmup):
            session.run(inputs)
    times: list[list[float]] = [[] for _ in jobs]
    shuffled = random.Random(0)
    for _ in range(runs):
        for number in shuffled.sample(range(len(jobs)), len(jobs)):
            session, inputs = jobs[number]
            session.run(inputs)
            start = clock()
            session.run(inputs)
            elapsed = (clock() - start) * 1e3
            if isinstance(session, ApartSession):
                elapsed = session.milliseconds(cpu=clock is process_time)
            times[number].append(elapsed)
    return times


def latency(
    float_session: Session,
    quantized_session: Session,
    inputs: Sequence[np.ndarray],
    *,
    engine: str,
    threads: int = 1,
    runs: int = 20,
    warmup: int = 3,
    note: str = "",
) -> Latency:
    """Medians of interleaved runs, and their ratio float / quantized. The sessions were loaded with `threads`."""
    float_times, quantized_times = interleaved([float_session, quantized_session], inputs, runs=runs, warmup=warmup)
    float_ms, quantized_ms = median(float_times), median(quantized_times)
    return Latency(
        engine=engine,
        batch=int(inputs[0].shape[0]),
        float_ms=float_ms,
        quantized_ms=quantized_ms,
        speedup=float_ms / quantized_ms,
        runs=runs,
        threads=threads,
        note=note,
    )
