"""Engines in environments of their own: a worker process runs the file, and this side asks it."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import onnx

from isobit.core.arithmetic import Arithmetic
from isobit.core.errors import EngineError
from isobit.core.onnx_file import first_line
from isobit.core.records import Kernel
from isobit.engines.base import check_inputs, expose_tensors, failed, read_model, refused
from isobit.engines.environment import Environment
from isobit.engines.instruction_set import instruction_set
from isobit.engines.process import WorkerProcess

WORKERS = Path(__file__).parent / "workers"


def nothing_to_check(path: Path, expose: Sequence[str]) -> None:
    """Leave it to the engine to refuse a file."""
    del path, expose


@dataclass(frozen=True, kw_only=True, slots=True)
class Apart:
    """An engine in an `environment` of its own, as data: one more of them is a worker script and a row.

    `worker` is the script, whose contract `workers/serve.py` holds; `settings` go to its `load`. `check` looks at a
    file that is no ONNX before the worker sees it and raises EngineError; `rewrite` gives the bytes of the file that
    the worker gets in its place. `title` is its name in sentences. An answer
    may take `timeout` seconds. `onednn` says that ONEDNN_MAX_CPU_ISA decides on its instructions; `simulates` names
    the processor that it pretends to be, where it is a simulator.
    """

    name: str
    title: str
    format: str
    arithmetic: Arithmetic
    environment: Environment
    worker: Path
    settings: tuple[tuple[str, str | int], ...] = ()
    check: Callable[[Path, Sequence[str]], None] = nothing_to_check
    rewrite: Callable[[Path, Sequence[str]], bytes] | None = None
    threads: int = 1
    timeout: float = 600
    onednn: bool = False
    simulates: str = ""

    def missing(self) -> str:
        """See Engine."""
        if self.environment.installed():
            return ""
        if reason := self.environment.unavailable():
            return f"{self.title} cannot be had here: {reason}"
        return f"{self.title} is not installed. Install it with: isobit engines --install {self.environment.name}"

    def version(self) -> str:
        """See Engine."""
        self._check_installed()
        return self.environment.version()

    def instruction_set(self) -> str:
        """What it simulates, or what the processor has."""
        return self.simulates or instruction_set(onednn=self.onednn)

    def load(self, path: Path | str, *, expose: Sequence[str] = ()) -> "ApartSession":
        """See Engine. Raises EngineError also where its process dies or does not answer in time."""
        self._check_installed()
        path = Path(path)
        if self.format != "onnx":
            if not path.is_file():
                raise EngineError(f"there is no file {path}")
            self.check(path, expose)
            if self.rewrite is None:
                return self._started(path, path, expose, None)
            with tempfile.TemporaryDirectory() as folder:
                given = Path(folder) / path.name
                given.write_bytes(self.rewrite(path, expose))
                return self._started(path, given, expose, None)
        model = expose_tensors(read_model(path), expose)
        with tempfile.TemporaryDirectory() as folder:  # what was checked, with the exposed tensors among the outputs
            checked = Path(folder) / "net.onnx"
            checked.write_bytes(model.SerializeToString())
            return self._started(path, checked, expose, model)

    def _started(self, path: Path, given: Path, expose: Sequence[str], model: onnx.ModelProto | None) -> "ApartSession":
        """A process that has loaded the file `given`."""
        process = WorkerProcess(self.title, self.environment.python, self.worker, threads=self.threads)
        request = {
            "do": "load",
            "path": str(given.absolute()),
            "expose": list(expose),
            "settings": {**dict(self.settings), "threads": self.threads},
        }
        try:
            told, _ = process.ask(request, timeout=self.timeout)
            return ApartSession(self, path, model, process, told)
        except EngineError as error:
            process.close()
            raise refused(self.title, path, error) from error

    def _check_installed(self) -> None:
        if reason := self.missing():
            raise EngineError(reason)


@final
class ApartSession:
    """A file in a worker process, which ends with the session."""

    def __init__(
        self, engine: Apart, path: Path, model: onnx.ModelProto | None, process: WorkerProcess, told: dict[str, Any]
    ) -> None:
        self._engine, self._path, self._model, self._process = engine, path, model, process
        self._last: dict[str, Any] = {}
        try:
            self._outputs = tuple(str(name) for name in told["outputs"])
            self._inputs = None if told["inputs"] is None else [_Input(*each) for each in told["inputs"]]
            self._kernels = tuple(Kernel(name=str(k), precision=str(p), count=int(n)) for k, p, n in told["kernels"])
            self._islands = tuple(str(name) for name in told["islands"])
        except (KeyError, TypeError, ValueError) as error:
            raise EngineError(f"its worker does not describe the file: {first_line(error)}") from error

    @property
    def outputs(self) -> tuple[str, ...]:
        """See Session."""
        return self._outputs

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """See Session."""
        if self._model is not None:
            check_inputs(self._model, inputs)
        elif self._inputs is not None:
            _check(self._inputs, inputs)
        try:
            self._last, outputs = self._process.ask({"do": "run"}, inputs, timeout=self._engine.timeout)
            if len(outputs) != len(self._outputs):
                self._process.close()
                raise EngineError(f"its worker returned {len(outputs)} arrays for {len(self._outputs)} outputs")
        except EngineError as error:
            raise failed(self._engine.title, self._path, error) from error
        return outputs

    def milliseconds(self, *, cpu: bool = False) -> float:
        """What the last run took in the worker itself, without the pipe; `cpu` counts its processor time instead."""
        return float(self._last["cpu_seconds" if cpu else "seconds"]) * 1e3

    def kernels(self) -> tuple[Kernel, ...]:
        """See Session."""
        return self._kernels

    def float_islands(self) -> tuple[str, ...]:
        """See Session."""
        return self._islands

    def close(self) -> None:
        """End the process now, not with the last reference to the session."""
        self._process.close()


@dataclass(frozen=True)
class _Input:
    """What a file takes; a size of -1 is any."""

    name: str
    dtype: str
    sizes: Sequence[int]


def _check(wanted: Sequence[_Input], inputs: Sequence[np.ndarray]) -> None:
    if len(inputs) != len(wanted):
        raise EngineError(
            f"the file takes {len(wanted)} inputs ({', '.join(w.name for w in wanted)}), got {len(inputs)}"
        )
    for want, x in zip(wanted, inputs, strict=True):
        if x.dtype != np.dtype(want.dtype):
            raise EngineError(f"input {want.name!r} has to be {want.dtype}, got {x.dtype}")
        if len(want.sizes) != x.ndim or any(s not in (-1, have) for s, have in zip(want.sizes, x.shape, strict=True)):
            shown = " × ".join("batch" if size < 0 else str(size) for size in want.sizes)
            raise EngineError(f"input {want.name!r} has to have the shape {shown}, got {x.shape}")
