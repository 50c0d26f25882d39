"""The demo's result as one table, with what the reader should know about it."""

from collections.abc import Iterator
from typing import Any

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from isobit.benchmark.demo import DemoResult, DemoRun
from isobit.cli.output import VERDICT_STYLES, facts
from isobit.core.records import to_json
from isobit.report import numbers


def page(result: DemoResult) -> list[RenderableType]:
    """The table, its notes, and what was written."""
    return [
        table(result),
        *(Text(f"• {line}") for line in notes(result)),
        Text(),
        facts(
            [
                ("report", str(result.report)),
                ("files", [str(result.float_path), *(str(run.path) for run in result.runs)]),
                ("took", numbers.duration(result.seconds)),
            ]
        ),
    ]


def table(result: DemoResult) -> Table:
    """Rows: target and bits. Accuracies are on the 450 test digits."""
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left", padding=(0, 1, 0, 0))
    shown.add_column("target", style="bold", no_wrap=True)
    for name in ("bits", "float", "simu-\nlation", "integer\nreference", "engine", "verdict", "size", "speed-\nup"):
        shown.add_column(name, justify="left" if name == "verdict" else "right", no_wrap=True)
    baseline = result.float_accuracy
    for run in result.runs:
        right = {a.execution: a.right / a.total for a in run.certificate.accuracy}
        executions = ("simulation", "reference", run.certificate.engine)
        shown.add_row(
            run.target,
            str(run.bits),
            numbers.percent(baseline.right / baseline.total),
            *(numbers.percent(right[name]) for name in executions),
            Text(run.certificate.verdict, style=VERDICT_STYLES[run.certificate.verdict]),
            numbers.short(run.bytes, base_unit="B"),
            numbers.ratio(run.latency.speedup),
        )
    return shown


def notes(result: DemoResult) -> Iterator[str]:
    """What the numbers mean, and what they do not."""
    runs = result.runs
    total = result.float_accuracy.total
    yield (
        f"accuracy on {total} test digits; one digit is {numbers.percent(1 / total)}. The float file has "
        f"{numbers.short(result.float_bytes, base_unit='B')}, and the speed-up is over it on the same engine, "
        f"batch {runs[0].latency.batch}, {runs[0].latency.threads} thread."
    )
    for run in runs:
        if run.certificate.verdict != "exact":
            yield f"{run.target} at {run.bits} bits is {run.certificate.verdict}: {run.certificate.cause}"
    for run in runs:
        lost = result.float_accuracy.right - _engine_right(run)
        if run.bits < 8 and lost > 0:
            yield f"{run.target} at {run.bits} bits loses {lost} of {total} digits without training: see QAT in the docs"
    widths = sorted({run.bits for run in runs})
    smallest = {bits: min(run.bytes for run in runs if run.bits == bits) for bits in widths}
    if len(widths) > 1 and smallest[widths[0]] >= smallest[widths[-1]]:
        yield (
            f"the {widths[0]}-bit files are no smaller than the {widths[-1]}-bit ones: they hold one integer per byte, "
            "and these engines have no narrower kernels"
        )


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
