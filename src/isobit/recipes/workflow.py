"""The main job in three calls: `quantize`, `export`, `verify`; and those of training, in one's own loop or ours.

Names and plain values come in, settings go down.
"""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor, fx, nn

from isobit.algorithms.batch_norm import recalibrate_batch_norm
from isobit.algorithms.calibration import calibrate as calibrate_with
from isobit.algorithms.calibration import finish as finish_model
from isobit.algorithms.own_loop import advance, penalty
from isobit.algorithms.post_training import prepare as prepare_with
from isobit.algorithms.training import Training, train
from isobit.core.artifact import Artifact
from isobit.core.batches import Batch, Data, as_batch
from isobit.core.errors import CalibrationError, EngineError, SettingError
from isobit.core.progress import Progress, silent
from isobit.core.records import Certificate
from isobit.engines import ENGINES, Engine
from isobit.export import EXPORTERS
from isobit.graph.capture import capture
from isobit.recipes import quant_modules
from isobit.recipes.codec import decode, encode
from isobit.recipes.recipe import Recipe, recipe_of
from isobit.recipes.table import look_up
from isobit.targets import TARGETS
from isobit.verify import read_metadata
from isobit.verify import verify as verify_with

__all__ = [
    "Training",
    "advance",
    "calibrate",
    "export",
    "finish",
    "penalty",
    "prepare",
    "quant_modules",
    "quantize",
    "recalibrate_batch_norm",
    "train",
    "verify",
]


def quantize(
    net: nn.Module,
    data: Data,
    *,
    target: str,
    bits: int | None = None,
    checkpoint: str | Path | None = None,
    progress: Progress = silent,
    **settings: Any,
) -> fx.GraphModule:
    """Quantize a trained network for a named target from calibration data, without training.

    `data` yields batches: tensors, `(inputs, labels)` or dicts; 64 to 1,024 samples are usual. `bits` sets the
    width of weights and activations at once; every other field of `Recipe` can be given by its name. The result
    is a module that computes what will be deployed; the network itself is left as it was.

    With `reconstruction="brecq"` (or `adaround`, `qdrop`) roundings are learned from the data, which takes minutes and
    is what pays below 8 bits; with `gptq` they take seconds. `checkpoint` names a file from which it goes on after an
    interruption.

    Raises UnknownNameError, SettingError, CaptureError, CalibrationError or UnsupportedError, each with the layer
    and what to do.

    >>> import torch
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))
    >>> model = quantize(net, [torch.randn(16, 3, 8, 8)], target="onnxruntime-x86")
    >>> model(torch.randn(5, 3, 8, 8)).shape
    torch.Size([5, 10])
    """
    recipe = recipe_of(target=target, bits=bits, **settings)
    return quantize_with(net, data, recipe, checkpoint=checkpoint, progress=progress)


def quantize_with(
    net: nn.Module,
    data: Data,
    recipe: Recipe,
    *,
    checkpoint: str | Path | None = None,
    progress: Progress = silent,
) -> fx.GraphModule:
    """`quantize` with a recipe."""
    settings, profile = recipe.post_training(), recipe.profile()
    first, data = _peek(data)
    example = tuple(x[:1] for x in first.inputs)
    held = None if checkpoint is None else Path(checkpoint)
    model = settings.apply(net, example, data, profile, checkpoint=held, progress=progress)
    model.meta["example"], model.meta["recipe"] = example, encode(recipe)
    return model


def prepare(
    net: nn.Module, example: Tensor | tuple[Tensor, ...], *, target: str, bits: int | None = None, **settings: Any
) -> fx.GraphModule:
    """A captured copy of the network with quantizers in place, to be calibrated and trained; see `Recipe`."""
    return prepare_with_recipe(net, example, recipe_of(target=target, bits=bits, **settings))


def prepare_with_recipe(net: nn.Module, example: Tensor | tuple[Tensor, ...], recipe: Recipe) -> fx.GraphModule:
    """`prepare` with a recipe."""
    inputs = example if isinstance(example, tuple) else (example,)
    model = prepare_with(net, inputs, recipe.profile(), recipe.preparing())
    model.meta["example"], model.meta["recipe"] = tuple(x[:1] for x in inputs), encode(recipe)
    return model


def calibrate(model: nn.Module, data: Data, *, progress: Progress = silent) -> None:
    """Give the quantizers of a prepared model their first ranges, from data; raises CalibrationError.

    A network that was built after `isobit.quant_modules.initialize()` is prepared first, in place: its forward becomes
    the captured graph, its parameters stay the same objects. Build the optimizer behind this call: quantizers that
    learn, and the biases of merged batch norms, are parameters that appear here.
    """
    first, data = _peek(data)
    if not isinstance(model, fx.GraphModule) or "recipe" not in model.meta:
        _prepare_as_built(model, first.inputs)
    assert isinstance(model, fx.GraphModule)
    calibrate_with(model, data, decode(Recipe, model.meta["recipe"]).observation(), progress=progress)


def _prepare_as_built(net: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Prepare a network in place, by the settings that its layers were built under."""
    recipe = quant_modules.recipe_as_built(net)
    captured = capture(net, inputs)
    model = prepare_with_recipe(captured, inputs, quant_modules.with_float_layers(recipe, net, captured))
    quant_modules.become(net, model)


def _check_prepared(model: nn.Module) -> None:
    """Raise SettingError for a network that has no quantizers yet, with what is missing."""
    if not isinstance(model, fx.GraphModule):
        quant_modules.recipe_as_built(model)
        raise SettingError("this network was built to be quantized, and is not yet: call isobit.calibrate(net, data)")


def finish(model: fx.GraphModule) -> fx.GraphModule:
    """The same model in eval mode, as it will be deployed: batch norms merged, biases rounded. After training."""
    _check_prepared(model)
    finish_model(model.eval())
    return model


def export(model: fx.GraphModule, path: str | Path, *, format: str = "onnx") -> Artifact:
    """Write a quantized model as a deployable file; raises UnsupportedError or OutputError.

    The file holds integer weights and biases, and names its target, recipe and integers in its metadata.
    """
    _check_prepared(model)
    exporter = look_up("exporter", EXPORTERS, format)()
    metadata = {"isobit.recipe": json.dumps(model.meta["recipe"])} if "recipe" in model.meta else {}
    return exporter.export(model, path, example=example_of(model), metadata=metadata)


def verify(
    path: str | Path,
    model: fx.GraphModule | None = None,
    data: Data | None = None,
    *,
    engine: str | None = None,
    progress: Progress = silent,
) -> Certificate:
    """Run an exported file on a real engine and prove that it computes what was simulated; see `isobit.verify`.

    Without `engine`, the first of the target's engines that is installed. Raises ArtifactError, EngineError,
    UnknownNameError.
    """
    chosen = look_up("engine", ENGINES, engine)() if engine else _engine_of(Path(path))
    return verify_with(path, model, data, engine=chosen, progress=progress)


def _engine_of(path: Path) -> Engine:
    """The first installed engine of the target that the file was written for."""
    target = look_up("target", TARGETS, read_metadata(path)["isobit.target"])
    engines = [ENGINES[name]() for name in target.engines]
    usable = next((e for e in engines if not e.missing()), None)
    if usable is None:
        raise EngineError(engines[0].missing())
    return usable


def example_of(model: fx.GraphModule) -> tuple[Tensor, ...]:
    """The example inputs that a model was captured with."""
    found = model.meta.get("example")
    if not isinstance(found, tuple):
        raise SettingError("this model was not made by isobit.quantize or isobit.prepare: it carries no example input")
    return found


def _peek(data: Data) -> tuple[Batch, Data]:
    """The first batch that holds samples, and the data again from its start, also where it can be read only once."""
    if isinstance(data, Tensor):
        data = [data]
    if isinstance(data, (str, bytes)) or not hasattr(data, "__iter__"):
        raise CalibrationError(f"calibration data has to be batches of tensors, got {type(data).__name__}")
    walk: Iterator[Any] = iter(data)
    skipped: list[Any] = []
    for item in walk:
        batch = as_batch(item)
        skipped.append(item)
        if batch.inputs and batch.inputs[0].dim() and batch.size:
            again = itertools.chain(skipped, walk) if walk is data else data
            return batch, again
    raise CalibrationError("the calibration data is empty: give at least one sample (64 to 1,024 are usual)")
