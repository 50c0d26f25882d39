"""A matrix of training runs: every combination of methods, widths, targets, foldings and seeds, and their table."""

import itertools
import json
import statistics
import sys
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from isobit.algorithms.training import Hardware
from isobit.benchmark.workers import Job, Workers, in_processes
from isobit.core.errors import SettingError, UnknownNameError
from isobit.core.files import write_json
from isobit.core.progress import Progress, silent
from isobit.recipes.codec import decode, encode
from isobit.recipes.recipe import Recipe
from isobit.recipes.training import TrainingRecipe

UNSYNCHRONIZED = "4*"


@dataclass(frozen=True, kw_only=True, slots=True)
class Axes:
    """The values of each axis. `bits` are one number for weights and activations, or (weight, activation).

    The folding "4*" is strategy 4 where each process has the batch statistics of its own samples.
    """

    method: tuple[str, ...]
    bits: tuple[int | tuple[int, int], ...] = (4,)
    target: tuple[str, ...] = ("academic",)
    bn_fold: tuple[int | str, ...] | None = None
    seed: tuple[int, ...] = (0,)


@dataclass(frozen=True, kw_only=True, slots=True)
class Matrix:
    """`recipe` is what all runs share; its `quantization` is made from the axes. `float_accuracy` is the baseline's."""

    recipe: TrainingRecipe
    axes: Axes
    format: int = 1
    float_accuracy: float | None = None

    def __post_init__(self) -> None:
        if self.format != 1:
            raise SettingError(f"this isobit reads matrices of format 1, this one has format {self.format}")
        if self.recipe.quantization is not None:
            raise SettingError("recipe.quantization is made from the axes: leave it out")


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One cell and one seed."""

    name: str
    recipe: TrainingRecipe


def runs(matrix: Matrix) -> list[Run]:
    """All runs, in the order of the axes; raises UnknownNameError or SettingError for a cell that cannot be made."""
    a = matrix.axes
    found = []
    for method, bits, target, fold, seed in itertools.product(
        a.method, a.bits, a.target, a.bn_fold if a.bn_fold is not None else (None,), a.seed
    ):
        weight, activation = bits if isinstance(bits, tuple) else (bits, bits)
        quantization = Recipe(
            target=target, method=method, weight_bits=weight, activation_bits=activation, seed=seed,
            **_folding(fold, matrix.recipe.hardware),
        )  # fmt: skip
        quantization.profile()
        quantization.preparing()
        recipe = replace(matrix.recipe, quantization=quantization, training=replace(matrix.recipe.training, seed=seed))
        folded = "" if fold is None else f"-fold{fold}".replace("*", "star")
        found.append(Run(name=f"{method}-w{weight}a{activation}-{target}{folded}-seed{seed}", recipe=recipe))
    return found


def _folding(fold: int | str | None, hardware: Hardware) -> dict[str, Any]:
    if not isinstance(fold, str):
        return {"bn_fold": fold}
    if fold != UNSYNCHRONIZED:
        raise SettingError(f"bn_fold has to be a number or {UNSYNCHRONIZED!r}, got {fold!r}")
    if hardware.processes == 1:
        raise SettingError(
            f"bn_fold {UNSYNCHRONIZED} differs from 4 in several processes alone: set recipe.hardware.devices, to 2 say"
        )
    return {"bn_fold": 4, "bn_synchronized": False}


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """The records of all runs that have a result, in the order of the axes, and the others' errors by name."""

    records: list[dict[str, Any]]
    failed: dict[str, str]


def run_matrix(matrix: Matrix, folder: Path, *, workers: Workers | None = None, progress: Progress = silent) -> Outcome:
    """Do what is not done yet and collect the results; one process after the other does it where `workers` is None.

    A run that was interrupted goes on from its last checkpoint; one that is done is read. One that fails stops no
    other, and is tried again the next time. Raises SettingError for a folder with the results of another recipe.
    """
    todo = runs(matrix)
    waiting = [run for run in todo if not _is_of(folder / run.name / "record.json", run.recipe)]
    before = len(todo) - len(waiting)
    failed: dict[str, str] = {}
    progress("training the matrix", before, len(todo))
    if waiting:
        with closing((workers or in_processes(1))([_job(run, folder / run.name) for run in waiting])) as ended:
            for done, result in enumerate(ended, start=before + 1):
                if result.error:
                    failed[result.name] = result.error
                progress("training the matrix", done, len(todo))
    records = []
    for run in todo:
        record = folder / run.name / "record.json"
        if run.name in failed:
            continue
        if not record.is_file():
            failed[run.name] = f"it left no {record}: workers on other machines need a folder that all of them share"
            continue
        records.append({"run": run.name, "float_accuracy": matrix.float_accuracy, **json.loads(record.read_text())})
    write_json(folder / "records.json", records)
    return Outcome(records=records, failed=failed)


def _job(run: Run, folder: Path) -> Job:
    """`isobit train` with the recipe of one run."""
    folder.mkdir(parents=True, exist_ok=True)
    recipe = folder / "matrix_recipe.json"
    write_json(recipe, encode(run.recipe))
    return Job(run.name, (sys.executable, "-m", "isobit", "train", str(recipe), "-o", str(folder)), str(folder))


def _is_of(record: Path, recipe: TrainingRecipe) -> bool:
    """Whether a record is there and is that of this very recipe; what a recipe does not say has its default."""
    if not record.is_file():
        return False
    try:
        same = decode(TrainingRecipe, json.loads(record.read_text())["recipe"]).same_result(recipe)
    except (SettingError, UnknownNameError):
        same = False  # written by another version, with keys or values that this one does not know
    if not same:
        raise SettingError(
            f"{record.parent} holds the result of another recipe: choose another folder, or delete that one"
        )
    return True


def markdown(records: Iterable[Mapping[str, Any]], *, float_accuracy: float | None = None) -> str:
    """One row for each cell: last and best top-1 in per cent, the mean over seeds ± half their spread, or NC."""
    cells: dict[tuple[str, str, str, str], list[Mapping[str, Any]]] = {}
    for record in records:
        q = record["recipe"]["quantization"]
        fold = "target's" if q.get("bn_fold") is None else str(q["bn_fold"])
        fold += "" if q.get("bn_synchronized", True) else "*"
        key = (q["method"], f"W{q['weight_bits']}A{q['activation_bits']}", q["target"], fold)
        cells.setdefault(key, []).append(record)
    lines = ["| method | bits | target | folding | last | best | float - last | seconds |", "| --- " * 8 + "|"]
    for key, found in cells.items():
        converged = [r for r in found if not r["not_converged"]]
        if not converged:
            lines.append(f"| {' | '.join(key)} | NC | NC | | |")
            continue
        last, best = ([r[which] for r in converged] for which in ("last", "best"))
        lost = "" if float_accuracy is None else f"{float_accuracy - statistics.mean(last):.2f}"
        note = "" if len(converged) == len(found) else f" ({len(found) - len(converged)} of {len(found)} NC)"
        seconds = statistics.mean(r["seconds"] for r in converged)
        lines.append(f"| {' | '.join(key)} | {_spread(last)}{note} | {_spread(best)} | {lost} | {seconds:.0f} |")
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    mean = f"{statistics.mean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ± {(max(values) - min(values)) / 2:.2f}"
