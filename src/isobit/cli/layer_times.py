"""What `isobit latency --layers` does, and its table: each layer alone, in float and at each width."""

from collections.abc import Sequence
from itertools import chain
from typing import Any

from rich import box
from rich.console import RenderableType
from rich.table import Table

from isobit.analysis.latency_cache import LatencyCache, default_cache
from isobit.cli.data import Reading, load_data
from isobit.cli.loading import check_fits, load_model
from isobit.cli.output import bullets
from isobit.cli.progress import Watch
from isobit.cli.timing import Job, engines_of, numbers
from isobit.core.errors import SettingError
from isobit.core.latency_table import FLOAT, LatencyTable, LayerLatency, LayerTime, NetworkTime
from isobit.core.records import to_json
from isobit.recipes.latency_table import TableSettings, Widths, latency_table
from isobit.recipes.recipe import recipe_of

SAMPLES = 16
"""Enough to calibrate ranges on which no time depends."""


def run(job: Job, watch: Watch) -> list[LatencyTable]:
    """A table for each engine and batch size."""
    if job.files:
        raise SettingError("--layers measures the layers of --model, not of files: leave the files out")
    if job.model is None or job.data is None or job.target is None:
        raise SettingError("--layers needs --model MODEL, --data DATA and --target NAME")
    widths = tuple(_widths(text) for text in job.widths)
    sizes = numbers(job.batch or "1", "--batch")
    recipe, engines = recipe_of(target=job.target), engines_of(job)
    cache = LatencyCache(job.cache or default_cache())
    watch.stage("loading")
    net = load_model(job.model, job.weights)
    data = load_data(job.data, Reading(), samples=SAMPLES)
    check_fits(net, job.model, data)
    found = []
    if job.engines is None:
        own = recipe.profile().engines
        engines = [e for e in engines if e.name in own][:1] or engines[:1]
    for engine in engines:
        for size in sizes:
            watch.stage(f"quantizing for {engine.name}")
            settings = TableSettings(
                widths=widths, batch=size, runs=job.runs, threads=job.threads, clock=job.clock
            )  # fmt: skip
            found.append(latency_table(net, data, recipe, engine, settings, cache=cache, progress=watch))
    return found


def _widths(text: str) -> Widths:
    found = numbers(text, "--bits")
    if len(found) > 2:
        raise SettingError(f"--bits is one width, or those of weights and activations, such as 4,8; got {text!r}")
    return found[0], found[-1]


def page(found: Sequence[LatencyTable]) -> list[RenderableType]:
    """The tables one after the other, each with what to know about it."""
    return list(chain.from_iterable((_table(t), bullets(_notes(t))) for t in found))


def _table(found: LatencyTable) -> Table:
    title = f"{found.engine_version} on {found.instruction_set}, {found.target}, batch {found.batch}, milliseconds"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left")
    table.add_column("layer", overflow="fold")
    table.add_column("what", overflow="fold")
    order = [*(n for n in found.network if _of(n) == FLOAT), *(n for n in found.network if _of(n) != FLOAT)]
    for n in order:
        table.add_column(_word(_of(n)), justify="right", no_wrap=True)
    for row in found.layers:
        table.add_row(row.name, row.what, *(_cell(row, _of(n)) for n in order))
    table.add_section()
    table.add_row("sum of the layers", "", *(f"{n.layers_ms:.3f}" for n in order))
    table.add_row("the network", "", *(f"{n.ms:.3f}" for n in order))
    table.add_row("sum / network", "", *(f"{n.layers_ms / n.ms:.2f}" if n.ms else "" for n in order))
    return table


def _cell(row: LayerLatency, widths: Widths) -> str:
    time = next((t for t in row.times if _of(t) == widths), None)
    if time is None:
        return ""
    if time.ms is None:
        return "refused"
    marks = ("f" if time.in_float else "") + ("a" if time.alone_in_float else "")
    return f"{time.ms:.3f}{' ' + marks if marks else ''}"


def _notes(found: LatencyTable) -> list[str]:
    times = [(row, t) for row in found.layers for t in row.times]
    held = sum(t.held for _, t in times)
    notes = [
        f"medians of {found.runs} runs, {found.threads} thread(s); {held} of {len(times)} times are of equal layers or "
        "were kept from before",
        "each layer alone takes and gives integers; the sum differs from the network by what layers hand on: layouts, "
        "memory that is still in a cache, and what an engine fuses across them",
    ]
    for widths in dict.fromkeys(_of(t) for _, t in times):
        kinds = dict.fromkeys(kind for _, t in times if _of(t) == widths for kind in t.in_float)
        notes += [f"f: {found.engine} runs it in float; at {_word(widths)}: {', '.join(kinds)}"] if kinds else []
    if any(t.alone_in_float for _, t in times):
        notes.append("a: alone it ran in float, in the network with integers: its time is too high")
    notes += [f"{row.name} at {_word(_of(t))}: {t.refused}" for row, t in times if t.refused]
    return notes


def _of(time: NetworkTime | LayerTime) -> Widths:
    return time.weight_bits, time.activation_bits


def _word(widths: Widths) -> str:
    return "float" if widths == FLOAT else f"W{widths[0]}A{widths[1]}"


def as_json(found: Sequence[LatencyTable]) -> dict[str, Any]:
    """The tables for programs."""
    return {"tables": [to_json(table) for table in found]}
