"""What `isobit analyze` does with its parsed options, and its table of layers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from isobit.cli.data import Reading, load_data
from isobit.cli.loading import check_fits, load_model
from isobit.cli.output import bullets, facts
from isobit.cli.progress import Watch
from isobit.core.records import LayerRecord, RunRecord
from isobit.recipes.recipe import Recipe
from isobit.recipes.run import record_run
from isobit.recipes.workflow import quantize_with
from isobit.report import check_report, numbers, summary, write_report

WORST = 3
"""How many layers are called the worst."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """The command line of `isobit analyze`, with its names still to be loaded."""

    model: str
    weights: Path | None
    recipe: Recipe
    data: str
    samples: int | None
    reading: Reading
    report: Path | None = None
    command: str = ""


def run(job: Job, watch: Watch) -> RunRecord:
    """Load, quantize, analyse, and write the report where one is wanted."""
    if job.report is not None:
        check_report(job.report)
    watch.stage("loading")
    net = load_model(job.model, job.weights)
    data = load_data(job.data, job.reading, samples=job.samples)
    check_fits(net, job.model, data)
    watch.stage("capturing the network")
    model = quantize_with(net, data, job.recipe, progress=data.counted(watch))
    watch.stage("analysing the layers")
    record = record_run(
        model, net=net, data=data, network=job.model, title=f"{job.model} on {job.recipe.target}", progress=watch,
        command=job.command,
    )  # fmt: skip
    if job.report is not None:
        watch.stage("writing the report")
        write_report(record, job.report)
    return record


def page(record: RunRecord, report: Path | None) -> list[RenderableType]:
    """The layers, the worst of them, and what to know about them."""
    parts: list[RenderableType] = [layers(record), worst(record), Text(), bullets(record.warnings)]
    if record.ranges:
        parts += [Text(), facts([("ranges", [f"{r.tensor}: {r.reason}" for r in record.ranges])])]
    return parts if report is None else [*parts, Text(), facts([("written", str(report))])]


def layers(record: RunRecord) -> Table:
    """One row for each layer, in network order; those with the most noise stand out."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("layer", style="bold", overflow="fold")
    table.add_column("op")
    table.add_column("bits")
    for name in ("SQNR dB", "cosine", "isolated dB", "share"):
        table.add_column(name, justify="right", no_wrap=True)
    marked = {layer.name for layer in most_noise(record.layers)}
    for layer in record.layers:
        table.add_row(
            layer.name,
            layer.op,
            summary.widths(layer),
            numbers.fixed(layer.sqnr_db, 1),
            numbers.fixed(layer.cosine, 5),
            numbers.fixed(layer.isolated_db, 1),
            numbers.percent(layer.sensitivity, 1),
            style="yellow" if layer.name in marked else None,
        )
    return table


def most_noise(found: Sequence[LayerRecord]) -> list[LayerRecord]:
    """The layers that cause the most noise by themselves, the worst first."""
    measured = [layer for layer in found if layer.sensitivity]
    return sorted(measured, key=lambda layer: -(layer.sensitivity or 0))[:WORST]


def worst(record: RunRecord) -> Table:
    """The layers to look at first."""
    weakest, loudest = summary.weakest(record), most_noise(record.layers)
    rows = []
    if loudest:
        rows.append(("most noise", [f"{x.name} ({x.op}): {numbers.percent(x.sensitivity, 1)} of it" for x in loudest]))
    if weakest is not None:
        rows.append(("lowest SQNR", [f"{weakest.name} ({weakest.op}): {numbers.fixed(weakest.sqnr_db, 1)} dB"]))
    return facts(rows)
