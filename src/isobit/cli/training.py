"""What `isobit train` does with its recipe, and how the result is shown."""

import copy
from contextlib import nullcontext
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, final

import torch
from rich.table import Table
from torch import fx, nn

from isobit.algorithms.calibration import calibrate, finish
from isobit.algorithms.training import Training, TrainingRecord, is_first_process, require, train
from isobit.benchmark.data.training_set import TrainingSet
from isobit.cli.data import Batches, Reading, load_data
from isobit.cli.loading import load_model
from isobit.cli.output import facts
from isobit.cli.progress import Watch
from isobit.core.artifact import Artifact
from isobit.core.errors import UnsupportedError
from isobit.core.files import owned, write_json
from isobit.core.weights import save_weights
from isobit.recipes.codec import encode, read_recipe
from isobit.recipes.run import versions
from isobit.recipes.training import TrainingRecipe
from isobit.recipes.workflow import export, prepare_with_recipe

READ = 500
"""Images at a time while training data is read and networks are evaluated."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """What came out. `not_exported` says why there is no file, where a quantized network has none.

    Of several processes that train together, the first one writes and shows the result.
    """

    recipe: TrainingRecipe
    record: TrainingRecord
    folder: Path
    artifact: Artifact | None
    is_first: bool
    not_exported: str = ""


def read(
    file: Path,
    *,
    epochs: int | None = None,
    seed: int | None = None,
    accelerator: str | None = None,
    devices: int | None = None,
    tensorboard: bool | None = None,
) -> TrainingRecipe:
    """The recipe of a file; what is given goes over what it says."""
    recipe = read_recipe(TrainingRecipe, file)
    training: dict[str, Any] = {k: v for k, v in (("epochs", epochs), ("seed", seed)) if v is not None}
    places = (("accelerator", accelerator), ("devices", devices))
    hardware: dict[str, Any] = {k: v for k, v in places if v is not None}
    return replace(
        recipe,
        training=replace(recipe.training, **training),
        hardware=replace(recipe.hardware, **hardware),
        tensorboard=recipe.tensorboard if tensorboard is None else tensorboard,
    )


def run(recipe: TrainingRecipe, folder: Path, *, watch: Watch) -> Trained:
    """Load, prepare, calibrate, train, export. Raises OutputError where another process writes into the folder."""
    require(tensorboard=recipe.tensorboard)
    first = is_first_process()
    with owned(folder) if first else nullcontext():
        return _run(recipe, folder, watch if first else Silent(), first=first)


def _run(recipe: TrainingRecipe, folder: Path, watch: "Watch | Silent", *, first: bool) -> Trained:
    if first:
        write_json(folder / "recipe.json", encode(recipe))
    watch.stage("loading")
    reading = Reading(batch_size=READ, normalize=recipe.normalize)
    plain = load_data(recipe.data, reading)
    data = training_set(recipe, plain, watch)
    evaluation = load_data(recipe.evaluation, reading)
    torch.manual_seed(recipe.training.seed)
    net = load_model(recipe.network, None if recipe.weights is None else Path(recipe.weights))
    teacher = teacher_of(recipe, net)
    model = quantized(recipe, net, data, folder, watch) if recipe.quantization else net
    record = train(
        model, data, evaluation, recipe.training, folder=folder, teacher=teacher, hardware=recipe.hardware,
        tensorboard=recipe.tensorboard, progress=watch,
    )  # fmt: skip
    result = Trained(recipe=recipe, record=record, folder=folder, artifact=None, is_first=first)
    if not first:
        return result
    if not record.not_converged:
        watch.stage("writing the result")
        try:
            result = replace(result, artifact=written(model, folder))
        except UnsupportedError as error:
            result = replace(result, not_exported=str(error))
    write_json(folder / "record.json", as_json(result))
    return result


@final
class Silent:
    """The progress of a process beside the first."""

    def __call__(self, what: str, done: int, total: int | None) -> None:
        """See Watch."""

    def stage(self, what: str) -> None:
        """See Watch."""


def teacher_of(recipe: TrainingRecipe, net: nn.Module) -> nn.Module | None:
    """The network that distillation learns from: the one that is named, or the float network as it was loaded."""
    if not recipe.training.distills:
        return None
    if recipe.teacher is None:
        return copy.deepcopy(net)
    return load_model(recipe.teacher, None if recipe.teacher_weights is None else Path(recipe.teacher_weights))


def training_set(recipe: TrainingRecipe, plain: Batches, watch: Watch) -> TrainingSet:
    """The training batches of a recipe."""
    a, seed = recipe.augmentation, recipe.training.seed
    read = plain.watched(watch, "reading the training data")
    return TrainingSet(
        read, batch_size=recipe.batch_size, crop=a.crop, mirror=a.mirror, seed=seed, labels=recipe.training.labels
    )


def quantized(recipe: TrainingRecipe, net: nn.Module, data: TrainingSet, folder: Path, watch: Watch) -> fx.GraphModule:
    """The prepared network, calibrated unless a checkpoint of this run will set its state."""
    assert recipe.quantization is not None
    watch.stage("capturing the network")
    model = prepare_with_recipe(net, data.x[:1], recipe.quantization)
    if not (folder / "last.safetensors").exists():
        count = recipe.calibration_batches * recipe.batch_size
        calibrate(
            model, torch.split(data.x[:count], recipe.batch_size), recipe.quantization.observation(), progress=watch
        )
    return model


def written(model: nn.Module, folder: Path) -> Artifact | None:
    """The ONNX file of a quantized network, the weights of a float one."""
    if not isinstance(model, fx.GraphModule):
        save_weights(model, folder / "weights.safetensors")
        return None
    finish(model)
    return export(model, folder / "net.onnx")


def as_json(result: Trained) -> dict[str, Any]:
    """The record of the run for programs."""
    r, file = result.record, result.artifact
    return {
        "recipe": encode(result.recipe),
        "seed": result.recipe.training.seed,
        "versions": versions() | {"lightning": version("lightning")},
        "threads": torch.get_num_threads(),
        "not_converged": r.not_converged,
        "seconds": r.seconds,
        "epochs": [encode(e) for e in r.epochs],
        "last": None if r.last is None else r.last.accuracy,
        "best": None if r.best is None else r.best.accuracy,
        "not_exported": result.not_exported,
        "integers_sha256": None if file is None else file.integers_sha256,
        "file_sha256": None if file is None else file.sha256,
        "file_bytes": None if file is None else file.path.stat().st_size,
        "notes": [] if file is None else list(file.notes),
    }


def table(result: Trained) -> Table:
    """The record of the run for a person."""
    r, s = result.record, result.recipe.training
    found: list[tuple[str, Any]] = [("network", result.recipe.network), ("trained", _schedule(s))]
    if r.not_converged:
        found.append(("result", f"NC (not converged): {r.not_converged}"))
    for name, epoch in (("last", r.last), ("best", r.best)):
        if epoch is not None:
            found.append((name, f"{epoch.accuracy:.2f} % ({epoch.right} of {epoch.total}), epoch {epoch.number}"))
    if result.not_exported:
        found.append(("no file", result.not_exported))
    if result.artifact is not None and result.artifact.notes:
        found.append(("note", list(result.artifact.notes)))
    found += [("time", f"{r.seconds:.0f} s"), ("folder", str(result.folder))]
    return facts(found)


def _schedule(s: Training) -> str:
    return f"{s.epochs} epochs, {s.optimizer}, learning rate {s.learning_rate:g}, {s.schedule}, seed {s.seed}"
