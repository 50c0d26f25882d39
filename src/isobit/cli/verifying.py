"""What `isobit verify` does with its parsed options, and how the certificate is shown."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from torch import fx

from isobit.cli import rows
from isobit.cli.data import Reading, load_data
from isobit.cli.loading import check_fits, load_model
from isobit.cli.output import facts, verdict_text
from isobit.cli.progress import Watch
from isobit.core.errors import ArtifactError, SettingError
from isobit.core.records import Certificate, to_json
from isobit.integer.files import read_metadata
from isobit.recipes import workflow
from isobit.recipes.codec import decode, read_recipe
from isobit.recipes.recipe import Recipe


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """The command line of `isobit verify`, with its names still to be loaded."""

    file: Path
    reading: Reading
    engine: str | None = None
    data: str | None = None
    eval_samples: int | None = None
    model: str | None = None
    weights: Path | None = None
    calibration: str | None = None
    recipe: Path | None = None
    samples: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Verified:
    """The certificate, and what it was made on."""

    file: Path
    inputs: str
    certificate: Certificate


def run(job: Job, watch: Watch) -> Verified:
    """Verify the file; with a network, quantize that again and compare its simulation as well."""
    metadata = read_metadata(job.file)  # before anything that takes long
    if job.model is None and (given := _only_with_model(job)):
        raise SettingError(f"{given} is of use with --model only")
    watch.stage("loading")
    data = None if job.data is None else load_data(job.data, job.reading, samples=job.eval_samples)
    model = None if job.model is None else _simulation(job, job.model, metadata, watch)
    watch.stage(f"loading {job.file.name} into the engine")
    progress = watch if data is None else data.counted(watch)
    certificate = workflow.verify(job.file, model, data, engine=job.engine, progress=progress)
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


def table(result: Verified) -> Table:
    """The certificate as names and values."""
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


def as_json(result: Verified) -> dict[str, Any]:
    """The result for programs."""
    return {"file": str(result.file), "inputs": result.inputs, "certificate": to_json(result.certificate)}
