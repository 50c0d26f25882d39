"""What `isobit quantize` does with its parsed options, and how the result is shown."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.table import Table
from torch import fx, nn

from isobit.analysis.accuracy import accuracy
from isobit.cli import rows
from isobit.cli.calibrating import NONE, calibration_data, example_of_shape, input_range_of
from isobit.cli.data import Batches, Reading, load_data
from isobit.cli.loading import check_fits, load_model
from isobit.cli.output import facts, print_json, show, verdict_text, working
from isobit.cli.progress import Watch
from isobit.cli.requirement import WORSE, check_verdict, exit_code
from isobit.core.artifact import Artifact
from isobit.core.errors import CalibrationError, EngineError, SettingError
from isobit.core.files import check_writable
from isobit.core.records import (
    Accuracy,
    Certificate,
    FasterRecord,
    FloatOp,
    JointRangesRecord,
    PromiseRecord,
    RangeChoice,
    SegmentRecord,
    StepRecord,
    to_json,
)
from isobit.core.risks import SaturationRecord
from isobit.engines import ENGINES
from isobit.export import ENGINE_FORMATS, EXPORTERS
from isobit.graph.insert import preparation
from isobit.recipes.codec import decode, encode
from isobit.recipes.faster import faster
from isobit.recipes.promise import Promise, keep, metric_of
from isobit.recipes.recipe import Recipe
from isobit.recipes.run import record_run
from isobit.recipes.table import look_up
from isobit.recipes.workflow import export, format_for, quantize_with, verify
from isobit.report import check_report, write_report


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """The command line of `isobit quantize`, with its names still to be loaded."""

    model: str
    weights: Path | None
    recipe: Recipe
    data: str
    samples: int | None
    reading: Reading
    eval_data: str | None = None
    eval_samples: int | None = None
    output: Path | None = None
    format: str | None = None
    report: Path | None = None
    verify: bool | None = None
    engine: str | None = None
    command: str = ""
    input_shape: str | None = None
    balance: bool = False
    promise: Promise | None = None
    faster: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantized:
    """What came out. `not_verified` says why where there is no certificate; `file_bytes` is the ONNX file's size."""

    model: str
    recipe: Recipe
    calibration: str
    evaluation: str
    artifact: Artifact
    certificate: Certificate | None
    not_verified: str
    accuracy: tuple[Accuracy, ...]
    float_ops: tuple[FloatOp, ...]
    float_bytes: int
    file_bytes: int
    written: tuple[Path, ...]
    reconstruction: tuple[SegmentRecord, ...] = ()
    ranges: tuple[RangeChoice, ...] = ()
    joint_ranges: JointRangesRecord | None = None
    saturation: tuple[SaturationRecord, ...] = ()
    notes: tuple[str, ...] = ()
    promise: PromiseRecord | None = None
    faster: FasterRecord | None = None


def promise_of(max_drop: float | None, minutes: float | None) -> Promise | None:
    """The promise of the options; raises SettingError for a limit of time without one."""
    if max_drop is None:
        if minutes is not None:
            raise SettingError("--max-minutes limits the search of --max-drop: give both")
        return None
    return Promise(max_drop=max_drop, seconds=None if minutes is None else 60 * minutes)


def reading_of(batch_size: int, resize: int | None, crop: int | None, normalize: str | None) -> Reading:
    """How images are read, from the options."""
    return Reading(batch_size=batch_size, resize=resize, crop=crop, normalize=normalize)


def shown(job: Job, *, require: str, json: bool, debug: bool) -> int:
    """Do the job, print what came out, and give the exit code."""
    check_verdict(require)
    with working(debug=debug) as watch:
        result = run(job, watch)
    print_json(as_json(result)) if json else show(table(result))
    if result.promise is not None and not result.promise.kept:
        return WORSE
    return 0 if result.certificate is None else exit_code(result.certificate.verdict, require)


def run(job: Job, watch: Watch) -> Quantized:
    """Load, quantize, export, verify, measure."""
    if job.output is not None:
        check_writable(job.output)
    if job.report is not None:
        check_report(job.report)
    format = format_of(job)
    engine, not_verified = engine_for(job, format)
    runs = look_up("engine", ENGINES, engine)().format if engine else "onnx"
    watch.stage("loading")
    net = load_model(job.model, job.weights)
    data = calibration_data(
        net, job.data, job.reading, shape=job.input_shape, samples=job.samples, balance=job.balance,
        seed=job.recipe.seed, progress=watch,
    )  # fmt: skip
    evaluation = data
    if job.eval_data is not None:
        evaluation = load_data(job.eval_data, job.reading, samples=job.eval_samples)
    check_fits(net, job.model, data)
    watch.stage("capturing the network")
    timed = None
    if job.faster:
        if engine is None:
            raise EngineError(f"--faster measures on the target's engine: {not_verified}")
        asked, timed = faster(net, data, job.recipe, look_up("engine", ENGINES, engine)(), progress=watch)
        job = replace(job, recipe=asked)
    checkpoint = _checkpoint(job)
    model = _quantized(job, net, data, evaluation, checkpoint, watch)
    recipe = decode(Recipe, model.meta["recipe"])
    with _place(job.output if format == runs else None, f"net{_suffix(runs)}") as path:
        watch.stage(f"exporting {path.name}")
        artifact = export(model, path, format=runs)
        certificate = None
        if engine is not None:
            watch.stage(f"loading {path.name} into {engine}")
            certificate = verify(path, model, evaluation, engine=engine, progress=evaluation.counted(watch))
        found = measured(net, model, evaluation, certificate, watch)
        if job.output is not None and format != runs:
            watch.stage(f"exporting {job.output.name} as {format}")
            artifact = export(model, job.output, format=format)
        if job.report is not None:
            write_record(job, net, model, data, certificate, found, watch)
        if checkpoint is not None:
            _remove(checkpoint)
        return Quantized(
            model=job.model, recipe=recipe, calibration=data.text, evaluation=evaluation.text, artifact=artifact,
            certificate=certificate, not_verified=not_verified, accuracy=found,
            float_ops=preparation(model).plan.float_ops, float_bytes=bytes_of(net),
            file_bytes=sum(p.stat().st_size for p in (artifact.path, *artifact.beside)),
            ranges=model.meta.get("ranges", ()), joint_ranges=model.meta.get("joint_ranges"),
            saturation=model.meta.get("saturation", ()),
            reconstruction=model.meta.get("reconstruction", ()), promise=model.meta.get("promise"), faster=timed,
            notes=(*model.meta.get("notes", ()), *model.meta.get("calibration_data", ()), *artifact.notes),
            written=tuple(p for p in (job.output, *artifact.beside, job.report) if p is not None),
        )  # fmt: skip


def _quantized(
    job: Job, net: nn.Module, data: Batches, evaluation: Batches, checkpoint: Path | None, watch: Watch
) -> fx.GraphModule:
    """The quantized network; under a promise the file is written anew with each better one that the search finds."""
    if job.data == NONE and job.promise is not None:
        raise SettingError("--max-drop searches with calibration data: give some, or --data dead-leaves")
    if job.data == NONE:
        example, values = example_of_shape(job.input_shape), input_range_of(job.reading)
        return quantize_with(
            net, None, job.recipe, example=example, input_range=values, checkpoint=checkpoint, progress=watch
        )
    if job.promise is None:
        return quantize_with(net, data, job.recipe, checkpoint=checkpoint, progress=data.counted(watch))
    if not evaluation.labelled():
        raise CalibrationError(f"--max-drop counts top-1, and {evaluation} have no labels: give --eval-data with some")

    def found(model: fx.GraphModule, step: StepRecord) -> None:
        if job.output is not None:
            watch.stage(f"exporting {job.output.name}: {step.name}")
            export(model, job.output, format=format_of(job))

    return keep(
        net, data, metric_of(evaluation), job.recipe, job.promise,
        folder=checkpoint, found=found, progress=data.counted(watch),
    )  # fmt: skip


def _checkpoint(job: Job) -> Path | None:
    """Where a reconstruction, or a search, keeps what it has done, until the file is written."""
    if job.output is None or (job.recipe.reconstruction is None and job.promise is None):
        return None
    return job.output.with_name(f"{job.output.name}.unfinished")


def _remove(checkpoint: Path) -> None:
    """A file, or a folder of a search."""
    if checkpoint.is_dir():
        shutil.rmtree(checkpoint)
    checkpoint.unlink(missing_ok=True)


def write_record(
    job: Job,
    net: nn.Module,
    model: fx.GraphModule,
    data: Batches,
    certificate: Certificate | None,
    found: tuple[Accuracy, ...],
    watch: Watch,
) -> None:
    """Analyse the layers on the calibration data and write the report."""
    assert job.report is not None
    watch.stage("analysing the layers")
    record = record_run(
        model, net=net, data=data, network=job.model, title=f"{job.model} on {job.recipe.target}",
        certificates=() if certificate is None else (certificate,), accuracy=found, command=job.command, progress=watch,
    )  # fmt: skip
    watch.stage("writing the report")
    write_report(record, job.report)


def format_of(job: Job) -> str:
    """The format of the output; raises SettingError where there is none to write, or UnknownNameError."""
    if job.format is not None and job.output is None:
        raise SettingError("--format says what --output writes: give both")
    format = job.format or format_for(job.output or Path("net.onnx"), job.recipe.profile())
    look_up("exporter", EXPORTERS, format)
    return format


def engine_for(job: Job, format: str) -> tuple[str | None, str]:
    """The engine to verify on; or none, and why: of the target's, one that runs the output's format, else an ONNX file,
    goes first. Raises EngineError where one was asked for and is missing."""
    if job.verify is False:
        return None, "not asked for"
    names = [job.engine] if job.engine else job.recipe.profile().engines
    engines = [look_up("engine", ENGINES, name)() for name in names]
    engines.sort(key=lambda e: (e.format != format, e.format != "onnx"))
    usable = next((e.name for e in engines if not e.missing()), None)
    if usable is None and (job.verify or job.engine):
        raise EngineError(engines[0].missing())
    return usable, "" if usable else engines[0].missing()


def measured(
    net: nn.Module, model: fx.GraphModule, data: Batches, certificate: Certificate | None, watch: Watch
) -> tuple[Accuracy, ...]:
    """Accuracy by execution where the data has labels: the certificate's, and the float network's."""
    if not data.labelled():
        return ()
    right, total = accuracy(net, data.watched(watch, "running the float network"))
    found = (Accuracy(execution="float", right=right, total=total),)
    if certificate is not None:
        return found + certificate.accuracy
    right, total = accuracy(model, data.watched(watch, "running the simulation"))
    return (*found, Accuracy(execution="simulation", right=right, total=total))


def bytes_of(net: nn.Module) -> int:
    """Bytes of all parameters and buffers."""
    return sum(t.numel() * t.element_size() for t in (*net.parameters(), *net.buffers()))


def _suffix(format: str) -> str:
    """That of a file which an engine runs; it holds the same integers as an output of another format."""
    return ENGINE_FORMATS[format]().suffix if format in ENGINE_FORMATS else ".onnx"


@contextmanager
def _place(output: Path | None, name: str) -> Iterator[Path]:
    """The file to write, or one in a folder that is removed afterwards."""
    if output is not None:
        yield output
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / name


def table(result: Quantized) -> Table:
    """The result as names and values."""
    found = result.certificate
    own = [("", "which it was calibrated on: give --eval-data to measure on other samples")]
    verdict = verdict_text(found.verdict, found.cause) if found else f"not verified: {result.not_verified}"
    return facts(
        [
            ("network", result.model),
            ("target", rows.target(result.recipe)),
            ("verdict", verdict),
            *rows.certificate(found),
            *rows.accuracies(result.accuracy, result.evaluation),
            *(own if result.evaluation == result.calibration and result.accuracy else []),
            *rows.ranges(result.ranges, result.joint_ranges),
            *rows.faster(result.faster),
            *rows.promise(result.promise),
            *rows.reconstruction(result.reconstruction),
            ("size", rows.size(result.float_bytes, result.file_bytes)),
            ("float ops", rows.float_ops(result.float_ops)),
            ("calibrated on", result.calibration),
            *([("note", list(result.notes))] if result.notes else []),
            ("written", [str(p) for p in result.written] or "nothing: give -o FILE to keep the ONNX file"),
        ]
    )


def as_json(result: Quantized) -> dict[str, Any]:
    """The result for programs."""
    return {
        "model": result.model,
        "recipe": encode(result.recipe),
        "calibration": result.calibration,
        "evaluation": result.evaluation,
        "notes": list(result.notes),
        "accuracy": [to_json(a) for a in result.accuracy],
        "float_ops": [to_json(f) for f in result.float_ops],
        "ranges": [to_json(r) for r in result.ranges],
        "joint_ranges": None if result.joint_ranges is None else to_json(result.joint_ranges),
        "reconstruction": [to_json(r) for r in result.reconstruction],
        "saturation": [to_json(r) for r in result.saturation],
        "faster": None if result.faster is None else to_json(result.faster),
        "promise": None if result.promise is None else to_json(result.promise),
        "float_bytes": result.float_bytes,
        "file_bytes": result.file_bytes,
        "file_sha256": result.artifact.sha256,
        "integers_sha256": result.artifact.integers_sha256,
        "certificate": None if result.certificate is None else to_json(result.certificate),
        "not_verified": result.not_verified,
        "written": [str(p) for p in result.written],
    }
