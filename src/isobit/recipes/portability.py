"""One file on every engine: are they exact, and do they agree with each other?"""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np
from torch import fx

from isobit.core.batches import Batch, Data, batches
from isobit.core.errors import EngineError, IsobitError, SettingError
from isobit.core.memory import freed_memory_stays
from isobit.core.portability import EngineRow, Portability
from isobit.core.progress import Progress, silent
from isobit.core.records import Certificate
from isobit.engines import ENGINES, Engine
from isobit.engines.latency import interleaved
from isobit.export import ENGINE_FORMATS
from isobit.integer.files import format_of, load_qdq, output_step, random_inputs, read_metadata
from isobit.integer.inputs import fitted
from isobit.recipes.table import look_up
from isobit.verify import verify

RUNS = 20
"""Runs of which the latency is the median."""


@dataclass
class _Answers:
    """The outputs of the engine that the others are compared with."""

    step: float | None
    outputs: list[np.ndarray] = field(default_factory=list)


@freed_memory_stays()
def portability(
    path: str | Path,
    model: fx.GraphModule | None = None,
    data: Data | None = None,
    *,
    engines: Sequence[str] | Mapping[str, Engine] | None = None,
    runs: int = RUNS,
    progress: Progress = silent,
) -> Portability:
    """Verify a file on several engines, and compare their outputs with those of the first.

    `engines` are names of `isobit.engines.ENGINES`, or engines by name; by default all that are installed, those that
    take the file's format first. Engines of LiteRT, PT2E and ncnn get an ONNX file translated into their formats, with
    the same integers. An engine that refuses the file becomes a row that says why. `runs` are those of which the
    latency of a batch of one is the median; with 0 nothing is timed.
    Raises ArtifactError for a file that cannot be read, EngineError where no engine is installed, CalibrationError for
    unusable data.
    """
    path = Path(path)
    file = load_qdq(path)
    chosen = _chosen(path, engines)
    given = random_inputs(file) if data is None else data
    seen = list(fitted(file, batches(given, name="verification data")))
    answers = _Answers(output_step(file))
    rows = []
    with in_formats(path) as files:
        for done, (name, engine) in enumerate(chosen.items(), start=1):
            try:
                rows.append(_row(name, engine, files(engine.format), model, seen, answers, runs))
            except IsobitError as error:
                rows.append(EngineRow(engine=name, refused=str(error)))
            progress("verifying on engines", done, len(chosen))
    return Portability(file=path.name, rows=tuple(rows))


def _chosen(path: Path, engines: Sequence[str] | Mapping[str, Engine] | None) -> dict[str, Engine]:
    if isinstance(engines, Mapping):
        return dict(engines)
    if engines is not None:
        found = {name: look_up("engine", ENGINES, name)() for name in engines}
        if missing := next((e.missing() for e in found.values() if e.missing()), ""):
            raise EngineError(missing)
        return found
    usable = {n: e for n, e in ((n, make()) for n, make in ENGINES.items()) if n != "fake" and not e.missing()}
    if not usable:
        raise EngineError("no engine is installed. Install some with: pip install 'isobit[engines]'")
    return dict(sorted(usable.items(), key=lambda item: item[1].format != format_of(path)))


@contextmanager
def in_formats(path: Path) -> Iterator[Callable[[str], Path]]:
    """A function from a format to the file in that format, translated once."""
    with tempfile.TemporaryDirectory() as folder:
        made: dict[str, Path] = {format_of(path): path}

        def in_format(wanted: str) -> Path:
            if wanted not in made:
                if wanted not in ENGINE_FORMATS:
                    raise SettingError(f"{path} has no form as {wanted}: export the model to that format")
                form = ENGINE_FORMATS[wanted]()
                translated = Path(folder) / f"{path.stem}{form.suffix}"
                form.write(translated, load_qdq(path), read_metadata(path))
                made[wanted] = translated
            return made[wanted]

        yield in_format


def _row(
    name: str, engine: Engine, path: Path, model: fx.GraphModule | None, seen: list[Batch], answers: _Answers, runs: int
) -> EngineRow:
    data = [(b.inputs, b.labels) if b.labels is not None else (b.inputs,) for b in seen]
    certificate: Certificate = verify(path, model, data, engine=engine)
    session = engine.load(path)
    outputs = [session.run([x.numpy() for x in b.inputs])[0] for b in seen]
    answers.outputs = answers.outputs or outputs
    equal, total, largest, same, samples = 0, 0, 0.0, 0, 0
    for mine, theirs in zip(outputs, answers.outputs, strict=True):
        difference = np.abs(mine.astype(np.float64) - theirs.astype(np.float64)) / (answers.step or 1.0)
        equal += int((difference < 0.5).sum() if answers.step else (mine == theirs).sum())
        total, largest = total + mine.size, max(largest, float(difference.max(initial=0.0)))
        same, samples = same + int((_class(mine) == _class(theirs)).sum()), samples + len(mine)
    times = interleaved([session], [x[:1].numpy() for x in seen[0].inputs], runs=runs)[0] if runs else []
    return EngineRow(
        engine=name,
        certificate=certificate,
        equal=equal,
        total=total,
        largest=largest,
        same_class=same,
        samples=samples,
        milliseconds=median(times) if times else None,
    )


def _class(y: np.ndarray) -> np.ndarray:
    """The answer for each sample: the place of its largest output."""
    return np.asarray(y.reshape(len(y), -1).argmax(1))
