"""What `isobit verify` does with its parsed options, and how the certificate is shown."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text
from torch import fx

from isobit.cli import rows
from isobit.cli.data import Batches, Reading, load_data
from isobit.cli.loading import check_fits, load_model
from isobit.cli.output import facts, verdict_text
from isobit.cli.progress import Watch
from isobit.core.errors import ArtifactError, SettingError
from isobit.core.portability import Portability
from isobit.core.records import Certificate, to_json
from isobit.export.from_encodings import quantized_file
from isobit.integer.files import read_metadata
from isobit.recipes import workflow
from isobit.recipes.codec import decode, read_recipe
from isobit.recipes.portability import RUNS, portability
from isobit.recipes.recipe import Recipe


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """The command line of `isobit verify`, with its names still to be loaded."""

    file: Path
    reading: Reading
    engine: str | None = None
    engines: str | None = None
    data: str | None = None
    eval_samples: int | None = None
    model: str | None = None
    weights: Path | None = None
    calibration: str | None = None
    encodings: Path | None = None
    recipe: Path | None = None
    samples: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Verified:
    """The certificate, and what it was made on."""

    file: Path
    inputs: str
    certificate: Certificate

    @property
    def verdicts(self) -> list[str]:
        """The one verdict."""
        return [self.certificate.verdict]


@dataclass(frozen=True, kw_only=True, slots=True)
class Several:
    """What a file does on several engines, and what it was verified on."""

    file: Path
    inputs: str
    found: Portability

    @property
    def verdicts(self) -> list[str]:
        """One for each engine; a file that an engine refuses is broken there."""
        return [row.certificate.verdict if row.certificate else "broken" for row in self.found.rows]


def run_several(job: Job, watch: Watch) -> Several:
    """Verify the file on several engines."""
    if job.engine is not None:
        raise SettingError("--engine and --engines exclude each other")
    data, model = _inputs_and_model(job, watch)
    names = None if job.engines in (None, "all") else [n.strip() for n in str(job.engines).split(",") if n.strip()]
    with quantized_file(job.file, job.encodings) as file:
        found = portability(file, model, data, engines=names, progress=watch)
    samples = max((row.samples for row in found.rows), default=0)
    inputs = f"{samples:,} samples drawn over the range of the first quantizer"
    return Several(file=job.file, inputs=inputs if data is None else data.text, found=found)


def _inputs_and_model(job: Job, watch: Watch) -> tuple[Batches | None, fx.GraphModule | None]:
    metadata = read_metadata(job.file)  # before anything that takes long
    if job.model is not None and job.encodings is not None:
        raise SettingError("--model and --encodings exclude each other: encodings belong to a file of others")
    if job.model is None and (given := _only_with_model(job)):
        raise SettingError(f"{given} is of use with --model only")
    watch.stage("loading")
    data = None if job.data is None else load_data(job.data, job.reading, samples=job.eval_samples)
    return data, None if job.model is None else _simulation(job, job.model, metadata, watch)


def run(job: Job, watch: Watch) -> Verified:
    """Verify the file; with a network, quantize that again and compare its simulation as well."""
    data, model = _inputs_and_model(job, watch)
    watch.stage(f"loading {job.file.name} into the engine")
    progress = watch if data is None else data.counted(watch)
    certificate = workflow.verify(job.file, model, data, engine=job.engine, encodings=job.encodings, progress=progress)
    inputs = f"{certificate.samples:,} samples drawn over the range of the first quantizer"
    return Verified(file=job.file, inputs=inputs if data is None else data.text, certificate=certificate)


def _only_with_model(job: Job) -> str:
    given = {"--weights": job.weights, "--calibration": job.calibration, "--recipe": job.recipe}
    return next((name for name, value in given.items() if value is not None), "")


def _simulation(job: Job, model: str, metadata: dict[str, str], watch: Watch) -> fx.GraphModule:
    """The network, quantized again as the file's recipe says."""
    if job.calibration is None:
        raise SettingError("--model needs --calibration DATA: the data that the file was calibrated on")
    if not metadata:
        raise ArtifactError(f"{job.file} was not written by isobit, so no network of ours made it. Leave --model out")
    if job.recipe is not None:
        recipe = read_recipe(Recipe, job.recipe)
    elif "isobit.recipe" in metadata:
        recipe = decode(Recipe, _recipe_in(metadata, job.file), path=f"the recipe in {job.file}")
    else:
        raise ArtifactError(f"{job.file} holds no recipe. Give the one it was made by: --recipe FILE")
    net = load_model(model, job.weights)
    data = load_data(job.calibration, job.reading, samples=job.samples)
    check_fits(net, model, data)
    watch.stage("capturing the network")
    return workflow.quantize_with(net, data, recipe, progress=data.counted(watch))


def _recipe_in(metadata: dict[str, str], file: Path) -> Any:
    try:
        return json.loads(metadata["isobit.recipe"])
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"the recipe in {file} is not JSON: give the one it was made by: --recipe FILE") from error


def table(result: Verified | Several) -> Table:
    """The certificate as names and values, or one row for each engine."""
    if isinstance(result, Several):
        return _several_table(result)
    found = result.certificate
    return facts(
        [
            ("file", str(result.file)),
            ("target", found.target),
            ("verdict", verdict_text(found.verdict, found.cause)),
            *rows.certificate(found),
            *(rows.accuracies(found.accuracy, result.inputs) if found.accuracy else []),
            ("inputs", result.inputs),
        ]
    )


def as_json(result: Verified | Several) -> dict[str, Any]:
    """The result for programs."""
    if isinstance(result, Several):
        return {"file": str(result.file), "inputs": result.inputs, "portability": to_json(result.found)}
    return {"file": str(result.file), "inputs": result.inputs, "certificate": to_json(result.certificate)}


def _several_table(result: Several) -> Table:
    """One row for each engine."""
    found = result.found
    labelled = found.spread is not None
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption=_caption(result), caption_justify="left")
    first = found.rows[0].engine
    headings = ["engine", "instructions", "verdict", "first difference", f"as on {first}", "ms", "in float"]
    for heading in [*headings[:4], *(["top-1"] if labelled else []), *headings[4:]]:
        table.add_column(heading, no_wrap=heading in ("engine", "verdict"))
    for row in found.rows:
        c = row.certificate
        if c is None:
            table.add_row(row.engine, "", Text("refused", style="red"), row.refused)
            continue
        right = next((f"{100 * a.right / a.total:.2f} %" for a in c.accuracy if a.execution == row.engine), "")
        share = f"{row.equal:,} of {row.total:,}" + (f", at most {row.largest:.3g} apart" if row.largest else "")
        milliseconds = "" if row.milliseconds is None else f"{row.milliseconds:.2f}"
        cells: list[str | Text] = [
            row.engine,
            c.instruction_set,
            verdict_text(c.verdict),
            row.first or c.cause,
            share,
            milliseconds,
        ]
        cells.append(str(len(c.float_islands)) if c.float_islands else "none")
        table.add_row(*cells[:4], *([right] if labelled else []), *cells[4:])
    return table


def _caption(result: Several) -> str:
    spread = result.found.spread
    points = "" if spread is None else f"; top-1 differs by {spread:.2f} points at most"
    return f"{result.file}, {result.inputs}{points}. ms: a batch of one, the median of {RUNS} runs."
