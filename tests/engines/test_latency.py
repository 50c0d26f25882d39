from collections.abc import Sequence
from time import sleep

import numpy as np
import pytest

from isobit.core.errors import SettingError
from isobit.core.records import Kernel
from isobit.engines.latency import CLOCKS, in_turns, interleaved, latency


class Sleeper:
    """A session that takes a known time and writes down when it ran."""

    def __init__(self, name: str, seconds: float, log: list[str]) -> None:
        self.name, self.seconds, self.log = name, seconds, log

    @property
    def outputs(self) -> tuple[str, ...]:
        return ("y",)

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        self.log.append(self.name)
        sleep(self.seconds)
        return [np.asarray(x) for x in inputs]

    def kernels(self) -> tuple[Kernel, ...]:
        return ()

    def float_islands(self) -> tuple[str, ...]:
        return ()


def test_runs_take_turns_each_behind_one_that_does_not_count_and_the_ratio_is_that_of_the_medians() -> None:
    log: list[str] = []
    slow, fast = Sleeper("slow", 0.02, log), Sleeper("fast", 0.005, log)
    found = latency(slow, fast, [np.zeros((4, 3))], engine="sleep", runs=5, warmup=1, note="test")
    assert log[:2] == ["slow", "fast"]
    turns = ["".join(log[i : i + 4]) for i in range(2, len(log), 4)]
    assert len(turns) == 5
    assert set(turns) == {"slowslowfastfast", "fastfastslowslow"}
    assert (found.engine, found.batch, found.runs, found.threads, found.note) == ("sleep", 4, 5, 1, "test")
    assert 2 < found.speedup < 5
    assert found.speedup == pytest.approx(found.float_ms / found.quantized_ms)
    assert 20 <= found.float_ms < 60


def test_no_run_is_an_error() -> None:
    with pytest.raises(SettingError, match="at least 1 run"):
        interleaved([], [], runs=0)


def test_the_clock_that_is_given_counts_and_warmup_does_not() -> None:
    now = 0.0

    class Advances(Sleeper):
        def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
            nonlocal now
            now += self.seconds * len(inputs)
            return []

    job = Advances("job", 0.25, [])
    jobs = [(job, [np.zeros(1)]), (job, [np.zeros(1)] * 2)]
    assert in_turns(jobs, runs=3, warmup=2, clock=lambda: now) == [[250.0] * 3, [500.0] * 3]
    assert now == (2 + 2 * 3) * 0.75
    assert set(CLOCKS) == {"wall", "cpu"}
