"""Trained networks as they are deployed: top-1 in simulation and engine, the certificate, the size of the file.

    python tools/bench_deployed.py runs/cifar10/lsq-w4a4-academic-seed0 [more folders] [--images 10000]

A folder is one of `isobit train` or `isobit bench`. Its last checkpoint is finished, exported anew and verified over
the recipe's evaluation data: simulation, integer reference and the target's first engine. Exit code 1: a top-1 of the
engine that is not that of the simulation.
"""

import argparse
import sys
from pathlib import Path

import torch

import isobit
from bench_output import Table, finish, say
from isobit.cli.data import Reading, load_data
from isobit.cli.loading import load_model
from isobit.core.batches import as_batch
from isobit.core.checkpoint import load_checkpoint
from isobit.core.errors import SettingError
from isobit.core.records import Accuracy, Certificate
from isobit.recipes.codec import read_recipe
from isobit.recipes.training import TrainingRecipe
from isobit.recipes.workflow import prepare_with_recipe

COLUMNS = (
    "run",
    "trained, last epoch",
    "float file",
    "file",
    "simulation",
    "reference",
    "engine",
    "verdict",
    "outputs equal to the reference",
)


def deployed(folder: Path, images: int) -> tuple[tuple[str, ...], str]:
    """A row of the table, and what is wrong, or nothing."""
    recipe = read_recipe(TrainingRecipe, folder / "recipe.json")
    if recipe.quantization is None:
        raise SettingError(f"{folder} is the run of a float network: there is nothing to deploy")
    data = list(load_data(recipe.evaluation, Reading(batch_size=500, normalize=recipe.normalize), samples=images))
    net = load_model(recipe.network, None if recipe.weights is None else Path(recipe.weights))
    model = prepare_with_recipe(net, as_batch(data[0]).inputs[0][:2], recipe.quantization)
    checkpoint = load_checkpoint(folder / "last.safetensors")
    prefix = "model."
    state = {k.removeprefix(prefix): v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)}
    model.load_state_dict(state)
    trained = checkpoint["isobit"]["curve"][-1]
    isobit.finish(model)
    path = isobit.export(model, folder / "net.onnx").path
    certificate = isobit.verify(path, model, data)
    found = {a.execution: a for a in certificate.accuracy}
    simulation = found["simulation"]
    engine = next(a for name, a in found.items() if name not in ("simulation", "reference", "float"))
    size = sum(p.numel() * p.element_size() for p in net.parameters())
    row = (
        folder.name, f"{trained['right']:,}", f"{size / 1000:.0f} kB", f"{path.stat().st_size / 1000:.0f} kB",
        f"{simulation.right:,}", _right(found.get("reference")), f"{engine.right:,}", certificate.verdict,
        _equal(certificate),
    )  # fmt: skip
    same = simulation.right == engine.right
    return row, "" if same else f"{folder.name}: {simulation.right} right in simulation, {engine.right} on the engine"


def _right(counted: Accuracy | None) -> str:
    return "" if counted is None else f"{counted.right:,}"


def _equal(certificate: Certificate) -> str:
    found = next(c for c in certificate.comparisons if c.left == "reference")
    return f"{found.equal:,} of {found.total:,}"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    rows, failed = [], []
    for folder in options.folders:
        say(folder.name)
        with torch.no_grad():
            row, wrong = deployed(folder, options.images)
        rows.append(row)
        failed += [wrong] if wrong else []
    title = f"Deployed, images right of {options.images:,}"
    table = Table(title=title, columns=COLUMNS, rows=tuple(rows))
    return finish([table], json_file=options.json, records=rows, failed=failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
