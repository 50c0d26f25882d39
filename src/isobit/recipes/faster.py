"""Leave in float what an engine runs faster that way: quantization that only costs time is undone, kind by kind."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import final

import numpy as np
from torch import nn

from isobit.analysis.layers import quantized_layers
from isobit.core.batches import Data, batches
from isobit.core.errors import EngineError, SettingError, UnsupportedError
from isobit.core.progress import Progress, silent
from isobit.core.records import FasterRecord, UndoneRecord
from isobit.engines import Engine
from isobit.engines.base import Session
from isobit.engines.latency import interleaved
from isobit.export import export_float
from isobit.graph.capture import capture
from isobit.recipes.recipe import Recipe
from isobit.recipes.workflow import example_of, export, quantize_with


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Faster:
    """Settings: `gain` is the share of time that leaving a kind of layer in float has to save; `samples` calibrate.

    Times are medians of `runs` runs in turns, at this batch size.
    """

    gain: float = 0.03
    runs: int = 30
    batch: int = 1
    samples: int = 32

    def __post_init__(self) -> None:
        if not 0 <= self.gain < 1:
            raise SettingError(f"gain is a share of the time, from 0 to below 1, got {self.gain!r}")
        if min(self.runs, self.batch, self.samples) < 1:
            raise SettingError("runs, batch and samples have to be at least 1")


def faster(
    net: nn.Module,
    data: Data,
    recipe: Recipe,
    engine: Engine,
    settings: Faster | None = None,
    *,
    progress: Progress = silent,
) -> tuple[Recipe, FasterRecord]:
    """The recipe with those kinds of layers in float that `engine` then runs faster, and what was measured.

    For each kind of layer in turn (convolution, depthwise convolution, add, …) the file with and the file without it
    quantized run in turns in this process; float stays where it saves the share `gain`. Timing depends on the machine,
    and so does the recipe that comes out: it is written into the result like any other. Raises EngineError where the
    engine is not installed, and what `isobit.quantize` raises.
    """
    settings = settings or Faster()
    if why := engine.missing():
        raise EngineError(why)
    some = _some(data, settings.samples)
    plain = replace(recipe, reconstruction="none", bias_correction=False)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        timed = _Timed(net, some, engine, settings, place)
        model = quantize_with(net, some, plain)
        now, inputs = timed.load(plain), timed.inputs
        floats = timed.load_float()
        kinds: dict[str, list[str]] = {}
        for layer in quantized_layers(model):
            if not layer.moves:
                kinds.setdefault(layer.label, []).append(layer.name)
        undone = []
        for number, (kind, layers) in enumerate(kinds.items() if len(kinds) > 1 else []):
            progress("timing layers in float", number, len(kinds))
            tried = replace(plain, keep_float=(*plain.keep_float, *layers))
            try:
                other = timed.load(tried)
            except (UnsupportedError, SettingError):
                continue
            before, after = timed.medians([now, other], inputs)
            gains = after < before * (1 - settings.gain)
            undone.append(
                UndoneRecord(kind=kind, layers=tuple(layers), quantized_ms=before, float_ms=after, undone=gains)
            )
            if gains:
                plain, now = tried, other
        float_ms, quantized_ms = timed.medians([floats, now], inputs)
    record = FasterRecord(engine=engine.name, float_ms=float_ms, quantized_ms=quantized_ms, kinds=tuple(undone))
    return replace(recipe, keep_float=plain.keep_float), record


class _Timed:
    """Files of one network, loaded into one engine."""

    def __init__(self, net: nn.Module, data: Data, engine: Engine, settings: Faster, folder: Path) -> None:
        self.net, self.data, self.engine, self.settings, self.folder = net, data, engine, settings, folder
        self.count = 0
        first = next(iter(batches(data)))
        self.inputs = [np.ascontiguousarray(x.numpy()[np.arange(settings.batch) % len(x)]) for x in first.inputs]
        self.example = tuple(x[:1] for x in first.inputs)

    def load(self, recipe: Recipe) -> Session:
        """The file of a recipe."""
        model = quantize_with(self.net, self.data, recipe)
        self.example = example_of(model)
        self.count += 1
        return self.engine.load(export(model, self.folder / f"{self.count}.onnx").path)

    def load_float(self) -> Session:
        """The float network's file."""
        path = export_float(capture(self.net, self.example), self.folder / "float.onnx", example=self.example)
        return self.engine.load(path)

    def medians(self, sessions: Sequence[Session], inputs: Sequence[np.ndarray]) -> list[float]:
        """Milliseconds of each, run in turns."""
        return [median(times) for times in interleaved(sessions, inputs, runs=self.settings.runs)]


def _some(data: Data, samples: int) -> list[tuple[object, ...]]:
    """The first samples of the data, in one place."""
    found: list[tuple[object, ...]] = []
    left = samples
    for batch in batches(data):
        found.append(tuple(x[:left] for x in batch.inputs))
        left -= batch.size
        if left <= 0:
            break
    return found
