"""The demo's result as one table, with what the reader should know about it."""

from collections.abc import Iterator
from typing import Any

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from isobit.benchmark.demo import DemoResult, DemoRun
from isobit.cli.output import VERDICT_STYLES, bullets, facts
from isobit.core.records import to_json
from isobit.report import numbers


def page(result: DemoResult) -> list[RenderableType]:
    """The table, its notes, and what was written."""
    files = [str(result.float_path), *(str(run.path) for run in result.runs)]
    took = numbers.duration(result.seconds)
    return [
        table(result),
        bullets(notes(result)),
        Text(),
        facts([("report", str(result.report)), ("files", files), ("took", took)]),
    ]


def table(result: DemoResult) -> Table:
    """Rows: target and bits. Accuracies in percent of the test digits."""
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    shown.add_column("target", style="bold", no_wrap=True)
    for name in ("bits", "float", "simu-\nlated", "integer\nref.", "engine"):
        shown.add_column(name, justify="right", no_wrap=True)
    shown.add_column("verdict", no_wrap=True)
    for name in ("file\nsize", "speed"):
        shown.add_column(name, justify="right", no_wrap=True)
    baseline = result.float_accuracy
    for run in result.runs:
        right = {a.execution: a.right / a.total for a in (baseline, *run.certificate.accuracy)}
        verdict = run.certificate.verdict
        shown.add_row(
            run.target,
            str(run.bits),
            *(f"{100 * right[name]:.2f}" for name in ("float", "simulation", "reference", run.certificate.engine)),
            Text(verdict, style=VERDICT_STYLES[verdict]),
            numbers.short(run.bytes, base_unit="B"),
            numbers.ratio(run.latency.speedup),
        )
    return shown


def notes(result: DemoResult) -> Iterator[str]:
    """What the numbers mean, and what they do not."""
    runs, total, timed = result.runs, result.float_accuracy.total, result.runs[0].latency
    size = numbers.short(result.float_bytes, base_unit="B")
    yield f"Accuracy in percent of {total} test digits; one digit is {100 / total:.2f}."
    yield (
        f"The float file has {size}; speed is relative to it on the same engine, {timed.threads} thread, batch "
        f"{timed.batch}. The times of so small a network vary from run to run."
    )
    causes: dict[str, list[str]] = {}
    for run in runs:
        if run.certificate.verdict != "exact":
            words = f"{run.certificate.verdict}: {run.certificate.cause}"
            causes.setdefault(words, []).append(_name(run))
    for words, names in causes.items():
        yield f"{' and '.join(names)}: {words}."
    lost = {_name(run): result.float_accuracy.right - _engine_right(run) for run in runs}
    if any(count > 0 for count in lost.values()):
        listed = ", ".join(f"{name} {count}" for name, count in lost.items() if count > 0)
        yield f"Digits lost, of {total}, without any training of the quantized network: {listed}."
    widths = sorted({run.bits for run in runs})
    smallest = {bits: min(run.bytes for run in runs if run.bits == bits) for bits in widths}
    if len(widths) > 1 and smallest[widths[0]] >= smallest[widths[-1]]:
        yield (
            f"The {widths[0]}-bit files are no smaller than the {widths[-1]}-bit ones: they hold one integer per byte, "
            "and these engines have no narrower kernels."
        )


def _name(run: DemoRun) -> str:
    return f"{run.target} at {run.bits} bits"


def _engine_right(run: DemoRun) -> int:
    return next(a.right for a in run.certificate.accuracy if a.execution == run.certificate.engine)


def as_json(result: DemoResult) -> dict[str, Any]:
    """The result for programs."""
    return {
        "folder": str(result.folder),
        "float": {**to_json(result.float_accuracy), "file": str(result.float_path), "bytes": result.float_bytes},
        "runs": [
            {
                "target": run.target,
                "bits": run.bits,
                "file": str(run.path),
                "bytes": run.bytes,
                "speedup": run.latency.speedup,
                "certificate": to_json(run.certificate),
            }
            for run in result.runs
        ],
        "report": str(result.report),
        "seconds": result.seconds,
    }
