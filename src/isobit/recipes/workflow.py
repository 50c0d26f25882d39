"""The main job in three calls: `quantize`, `export`, `verify`; and those of training, in one's own loop or ours.

Names and plain values come in, settings go down.
"""

import itertools
import json
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import Tensor, fx, nn

from isobit.algorithms import SYNTHESES
from isobit.algorithms.batch_norm import recalibrate_batch_norm
from isobit.algorithms.calibration import calibrate as calibrate_with
from isobit.algorithms.calibration import finish as finish_model
from isobit.algorithms.input_range import Example, InputRange, example_inputs
from isobit.algorithms.own_loop import advance, penalty
from isobit.algorithms.post_training import prepare as prepare_with
from isobit.algorithms.training import Training, train
from isobit.algorithms.without_data import invented_inputs
from isobit.analysis.calibration_data import balanced
from isobit.core.artifact import Artifact
from isobit.core.batches import Batch, Data, as_batch
from isobit.core.errors import CalibrationError, EngineError, SettingError, UnknownNameError
from isobit.core.memory import freed_memory_stays
from isobit.core.progress import Progress, silent
from isobit.core.records import Certificate
from isobit.engines import ENGINES, Engine
from isobit.export import EXPORTERS
from isobit.export.from_encodings import quantized_file
from isobit.graph.capture import capture
from isobit.graph.insert import preparation
from isobit.integer.files import format_of, read_metadata
from isobit.recipes import quant_modules
from isobit.recipes.codec import decode, encode
from isobit.recipes.recipe import Recipe, recipe_of
from isobit.recipes.table import look_up
from isobit.targets import TARGETS, Profile
from isobit.verify import verify as verify_with

__all__ = [
    "Training",
    "advance",
    "balanced",
    "calibrate",
    "export",
    "finish",
    "penalty",
    "prepare",
    "quant_modules",
    "quantize",
    "recalibrate_batch_norm",
    "synthesize",
    "train",
    "verify",
]


def quantize(
    net: nn.Module,
    data: Data | None,
    *,
    target: str,
    bits: int | None = None,
    example: Example | None = None,
    input_range: InputRange = None,
    checkpoint: str | Path | None = None,
    progress: Progress = silent,
    **settings: Any,
) -> fx.GraphModule:
    """Quantize a trained network for a named target from calibration data, without training.

    `data` yields batches: tensors, `(inputs, labels)` or dicts; 64 to 1,024 samples are usual. `bits` sets the
    width of weights and activations at once; every other field of `Recipe` can be given by its name. The result
    is a module that computes what will be deployed; the network itself is left as it was.

    Weights are rounded by GPTQ where nothing else is said, in seconds (`reconstruction="none"`: to nearest). With
    `"brecq"`, `"adaround"` or `"qdrop"` roundings are learned from the data, which takes minutes and pays below 8 bits.
    `checkpoint` names a file from which it goes on after an interruption.

    Without data (None) give an `example` of the input, or its shape: batch norm tells ranges and means, and synthetic
    images what it does not. `input_range` are the lowest and highest values that the network takes, (-1, 1), each a
    number or one for each channel; without it, inputs have mean 0 and deviation 1.

    Raises UnknownNameError, SettingError, CaptureError, CalibrationError or UnsupportedError, each with the layer
    and what to do.

    >>> import torch
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))
    >>> model = quantize(net, [torch.randn(16, 3, 8, 8)], target="onnxruntime-x86")
    >>> model(torch.randn(5, 3, 8, 8)).shape
    torch.Size([5, 10])
    """
    recipe = recipe_of(target=target, bits=bits, **settings)
    return quantize_with(
        net, data, recipe, example=example, input_range=input_range, checkpoint=checkpoint, progress=progress
    )


@freed_memory_stays()
def quantize_with(
    net: nn.Module,
    data: Data | None,
    recipe: Recipe,
    *,
    example: Example | None = None,
    input_range: InputRange = None,
    checkpoint: str | Path | None = None,
    progress: Progress = silent,
) -> fx.GraphModule:
    """`quantize` with a recipe."""
    settings, profile = recipe.post_training(without_data=data is None), recipe.profile()
    if data is None:
        data = invented_inputs(net, example_inputs(example), input_range, seed=recipe.seed, progress=progress)
    elif example is not None or input_range is not None:
        raise SettingError("example and input_range say what data show: give them where data is None, and only there")
    first, data = _peek(data)
    inputs = tuple(x[:1] for x in first.inputs)
    held = None if checkpoint is None else Path(checkpoint)
    model = settings.apply(net, inputs, data, profile, checkpoint=held, progress=progress)
    model.meta["example"], model.meta["recipe"] = inputs, encode(recipe)
    return model


@freed_memory_stays()
def synthesize(
    net: nn.Module,
    example: Example,
    *,
    method: str = "dead_leaves",
    samples: int = 64,
    seed: int = 0,
    progress: Progress = silent,
    **settings: Any,
) -> list[Tensor]:
    """Batches of inputs that stand for the data a float network was trained on, made from nothing but the network.

    `example` is an input of it or its shape, `method` a name of `isobit.algorithms.SYNTHESES`: `dead_leaves` draws
    images, in seconds; `zeroq` distils them from batch norm, `gdfq` trains a generator, in minutes. `settings` are the
    method's own, such as `input_range` or `iterations`. They go wherever calibration data go.

    Raises UnknownNameError, SettingError, or UnsupportedError for a network that the method has nothing to learn from.
    """
    if isinstance(samples, bool) or samples < 1:
        raise SettingError(f"the number of samples has to be at least 1, got {samples}")
    kind = look_up("synthesis", SYNTHESES, method)
    if unknown := next((key for key in settings if key not in {f.name for f in fields(kind)}), None):  # type: ignore[arg-type]
        raise UnknownNameError(f"setting of {method}", unknown, [f.name for f in fields(kind)])  # type: ignore[arg-type]
    return kind(**settings).synthesize(net, example_inputs(example), samples=samples, seed=seed, progress=progress)


def prepare(
    net: nn.Module, example: Tensor | tuple[Tensor, ...], *, target: str, bits: int | None = None, **settings: Any
) -> fx.GraphModule:
    """A captured copy of the network with quantizers in place, to be calibrated and trained; see `Recipe`."""
    return prepare_with_recipe(net, example, recipe_of(target=target, bits=bits, **settings))


def prepare_with_recipe(net: nn.Module, example: Tensor | tuple[Tensor, ...], recipe: Recipe) -> fx.GraphModule:
    """`prepare` with a recipe."""
    if recipe.avoid_saturation:
        raise SettingError(
            "avoid_saturation changes weights that are rounded at once: use isobit.quantize, not training"
        )
    if recipe.exact:
        raise SettingError("exact chooses calibrated scales, which training would change: use isobit.quantize")
    inputs = example if isinstance(example, tuple) else (example,)
    model = prepare_with(net, inputs, recipe.profile(), recipe.preparing())
    model.meta["example"], model.meta["recipe"] = tuple(x[:1] for x in inputs), encode(recipe)
    return model


@freed_memory_stays()
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


def export(model: fx.GraphModule, path: str | Path, *, format: str | None = None) -> Artifact:
    """Write a quantized model as a deployable file; raises UnsupportedError or OutputError.

    The file holds integer weights and biases, and names its target, recipe and integers in its metadata. `format` is a
    name of `isobit.export.EXPORTERS`: by default `litert` where `path` ends on .tflite, `pt2e` on .pt2, `ncnn-int8`
    on .param, else the first of the target's other formats: `onnx`, which engines here run, or what a vendor's tool
    takes, such as a float network with a file of encodings beside it; `Artifact.notes` says what a format leaves to
    that tool.
    """
    _check_prepared(model)
    exporter = look_up("exporter", EXPORTERS, format or format_for(Path(path), preparation(model).profile))()
    metadata = {"isobit.recipe": json.dumps(model.meta["recipe"])} if "recipe" in model.meta else {}
    return exporter.export(model, path, example=example_of(model), metadata=metadata)


def format_for(path: Path, profile: Profile) -> str:
    """The format of a file where none is named: by its suffix, else the first of the target's that no suffix names."""
    by_suffix = format_of(path)
    if by_suffix != "onnx":
        return by_suffix
    return next((name for name in profile.formats if name not in ("litert", "pt2e")), "onnx")


@freed_memory_stays()
def verify(
    path: str | Path,
    model: fx.GraphModule | None = None,
    data: Data | None = None,
    *,
    engine: str | None = None,
    encodings: str | Path | None = None,
    progress: Progress = silent,
) -> Certificate:
    """Run an exported file on a real engine and prove that it computes what was simulated; see `isobit.verify`.

    Without `engine`, the first of the target's engines that is installed. `encodings` are AIMET's, of a float ONNX
    file: the network is quantized as they say. Raises ArtifactError, EngineError, UnknownNameError.
    """
    with quantized_file(path, encodings) as file:
        chosen = look_up("engine", ENGINES, engine)() if engine else _engine_of(file)
        return verify_with(file, model, data, engine=chosen, progress=progress)


_FOR_ANY = ("onnxruntime", "openvino", "litert", "inductor", "executorch", "ncnn")


def _engine_of(path: Path) -> Engine:
    """The first installed engine that takes the file: of its target's, or, where none of those does, of all."""
    metadata = read_metadata(path)
    own = look_up("target", TARGETS, metadata.get("isobit.target", "")).engines if metadata else ()
    takes = {name: ENGINES[name]().format for name in (*own, *_FOR_ANY)}
    names = [name for name in own if takes[name] == format_of(path)]
    engines = [ENGINES[name]() for name in names or _FOR_ANY if takes[name] == format_of(path)]
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
