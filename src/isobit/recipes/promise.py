"""An accuracy promise: start cheap, escalate until the accuracy is kept, and say what was spent and why.

Each step changes the best recipe so far and is measured. What a step has found is written down, so that an interrupted
search goes on behind it; what it would find is decided by the recipe alone.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import monotonic
from typing import Any, final

from torch import fx, nn

from isobit.analysis.accuracy import accuracy
from isobit.analysis.layer_error import isolated, ranking
from isobit.analysis.layers import quantized_layers
from isobit.core.batches import Data
from isobit.core.errors import ArtifactError, CalibrationError, SettingError, UnsupportedError
from isobit.core.files import write_json
from isobit.core.memory import freed_memory_stays
from isobit.core.progress import Progress, silent
from isobit.core.records import PromiseRecord, StepRecord
from isobit.graph.names import names
from isobit.recipes.codec import encode
from isobit.recipes.recipe import Recipe, recipe_of
from isobit.recipes.workflow import quantize_with

Metric = Callable[[nn.Module], float]
"""From a network to a number of which more is better, in the unit of `max_drop`."""

Names = tuple[str, ...]
"""A layer's name, and those of the ops that are computed with it."""

Found = Callable[[fx.GraphModule, StepRecord], None]
"""Told of each model that is better than all before."""


def _nothing(model: fx.GraphModule, step: StepRecord) -> None:
    """Nobody is told."""


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Promise:
    """How much of the metric may be lost, and how far the search may go.

    `max_drop` is in the unit of the metric, for labelled data points of top-1. `seconds` ends the search with the best
    found: no step begins later. `share` bounds the share of all layers that may get 8 bits or stay in float.
    """

    max_drop: float
    seconds: float | None = None
    share: float = 0.5

    def __post_init__(self) -> None:
        if not math.isfinite(self.max_drop) or self.max_drop < 0:
            raise SettingError(f"max_drop is how much may be lost, at least 0, got {self.max_drop!r}")
        if self.seconds is not None and not self.seconds > 0:
            raise SettingError(f"a search needs more than 0 seconds, got {self.seconds!r}")
        if not 0 <= self.share <= 1:
            raise SettingError(f"share is a part of all layers, 0 to 1, got {self.share!r}")


def quantize_within(
    net: nn.Module,
    data: Data,
    evaluation: Data | Metric,
    *,
    max_drop: float,
    target: str,
    bits: int | None = None,
    seconds: float | None = None,
    folder: str | Path | None = None,
    found: Found = _nothing,
    progress: Progress = silent,
    **settings: Any,
) -> fx.GraphModule:
    """Quantize so that no more than `max_drop` is lost, by the cheapest means that keep it; see `isobit.quantize`.

    `evaluation` is data with labels, whose top-1 is counted in percent, or a function from a network to a number of
    which more is better. The steps: as asked; ranges of least error; corrected biases; learned roundings; 8 bits, then
    float, for the layers that cost most. The result is the first model that keeps the promise, else the best one:
    `model.meta["promise"]` is the `PromiseRecord` of all steps and says which. With `folder` an interrupted search
    goes on behind its last step. `found` is called with each model that is better than those before.

    The metric chooses among a dozen models, so the chosen one is a little better on these samples than on others: give
    enough of them. Raises SettingError, CalibrationError for a metric that is no finite number, and what
    `isobit.quantize` raises for the recipe as it was asked for.
    """
    recipe = recipe_of(target=target, bits=bits, **settings)
    promise = Promise(max_drop=max_drop, seconds=seconds)
    return keep(net, data, metric_of(evaluation), recipe, promise, folder=folder, found=found, progress=progress)


def metric_of(evaluation: Data | Metric) -> Metric:
    """The metric itself, or the top-1 in percent on labelled data."""
    if callable(evaluation) and not isinstance(evaluation, type) and not hasattr(evaluation, "__iter__"):
        return evaluation

    def top_1(net: nn.Module) -> float:
        right, total = accuracy(net, evaluation)  # type: ignore[arg-type]
        return 100 * right / total

    return top_1


@freed_memory_stays()
def keep(
    net: nn.Module,
    data: Data,
    metric: Metric,
    recipe: Recipe,
    promise: Promise,
    *,
    folder: str | Path | None = None,
    found: Found = _nothing,
    progress: Progress = silent,
) -> fx.GraphModule:
    """`quantize_within` with a recipe."""
    data = data if hasattr(data, "__len__") else list(data)  # it is read again and again
    search = _Search(net, data, metric, recipe, promise, folder, found, progress)
    search.run()
    model = search.best_model()
    model.meta["promise"] = search.record()
    return model


class _Search:
    """The steps done, the best recipe among them, and what is to be tried next."""

    def __init__(
        self, net: nn.Module, data: Data, metric: Metric, recipe: Recipe, promise: Promise,
        folder: str | Path | None, found: Found, progress: Progress,
    ) -> None:  # fmt: skip
        self.net, self.data, self.metric, self.promise = net, data, metric, promise
        self.asked, self.found, self.progress = recipe, found, progress
        self.folder = None if folder is None else Path(folder)
        self.held = _Held(self.folder, _key(net, recipe))
        self.start = monotonic()
        self.before = self.held.spent
        self.float = self.held.float
        if self.float is None:
            progress("measuring the float network", 0, None)
            self.float = self.held.float = _number(metric(net), "the float network")
        self.steps: list[StepRecord] = []
        self.best: tuple[float, Recipe] | None = None
        self.model: fx.GraphModule | None = None

    def run(self) -> None:
        """Do step after step until the promise is kept, the means are used up or the time is."""
        for name, change in _means(self.asked):
            if self._over():
                return
            if self._try(name, replace(self.best[1] if self.best else self.asked, **change)):
                return
        for what in ("8 bits", "float"):
            if self._raise_layers(what):
                return

    def record(self) -> PromiseRecord:
        """All steps, and which was chosen."""
        assert self.best is not None and self.float is not None
        drop = self.float - self.best[0]
        return PromiseRecord(
            float_metric=self.float,
            max_drop=self.promise.max_drop,
            drop=drop,
            kept=drop <= self.promise.max_drop,
            steps=tuple(self.steps),
            seconds=self._spent(),
        )

    def best_model(self) -> fx.GraphModule:
        """The model of the best recipe, made again where another one came after it."""
        assert self.best is not None
        return self.model if self.model is not None else self._quantized(self.best[1])

    def _over(self) -> bool:
        return bool(self.steps) and self.promise.seconds is not None and self._spent() >= self.promise.seconds

    def _spent(self) -> float:
        return self.before + monotonic() - self.start

    def _keeps(self, metric: float) -> bool:
        assert self.float is not None
        return self.float - metric <= self.promise.max_drop

    def _try(self, name: str, recipe: Recipe, *, fewer: bool = False) -> bool:
        """Measure a recipe; whether it keeps the promise. One that raises `fewer` layers is better if it does."""
        number = len(self.steps)
        step = self.held.step(number, name)
        model = None
        if step is None:
            started = monotonic()
            try:
                model = self._quantized(recipe)
                value: float | None = _number(self.metric(model), name)
                note = ""
            except (UnsupportedError, SettingError) as error:
                if not self.steps:
                    raise
                value, note = None, str(error)
            step = StepRecord(name=name, metric=value, seconds=monotonic() - started, note=note, better=False)
            if value is not None:
                higher = self.best is None or value > self.best[0]
                step = replace(step, better=self._keeps(value) if fewer else higher)
            self.held.add(step, self._spent())
        self.steps.append(step)
        if step.better and step.metric is not None:
            self.best, self.model = (step.metric, recipe), model
            if model is not None:
                self.found(model, step)
        return step.metric is not None and self._keeps(step.metric)

    def _raise_layers(self, what: str) -> bool:
        """Give the layers that cost most 8 bits, or leave them in float: twice as many each time, then back."""
        assert self.best is not None
        if self._over():
            return False
        base = self.best[1]
        order = self._costliest(base, what)
        most = math.floor(len(order) * self.promise.share) if what == "float" else len(order)
        for count in _doubling(most):
            if self._over():
                return False
            if self._try(_words(order, count, what), _raised(base, order[:count], what)):
                self._fewer(base, order, count, what)
                return True
        return False

    def _fewer(self, base: Recipe, order: list[Names], enough: int, what: str) -> None:
        """The least number of layers between half of what was enough and that."""
        low, high = enough // 2, enough
        while high - low > 1 and not self._over():
            middle = (low + high) // 2
            kept = self._try(_words(order, middle, what), _raised(base, order[:middle], what), fewer=True)
            low, high = (low, middle) if kept else (middle, high)

    def _costliest(self, recipe: Recipe, what: str) -> list[Names]:
        """The layers that can be raised, the one whose rounding disturbs the output most first."""
        if what != "float" and min(recipe.profile().weight.bits, recipe.profile().activation.bits) >= 8:
            return []
        model = self.model if self.model is not None else self._quantized(recipe)
        noises = isolated(model, self.data, samples=32, progress=self.progress)
        called = names(model.graph)
        layers = {layer.name: tuple(called[n] for n in layer.chain) for layer in quantized_layers(model)}
        given = recipe.keep_float if what == "float" else recipe.layer_bits
        order = [name for name in ranking(noises) if noises[name].noise > 0 and name not in given]
        return [(name, *(n for n in layers[name] if n != name)) for name in order]

    def _quantized(self, recipe: Recipe) -> fx.GraphModule:
        checkpoint = None
        if self.folder is not None and recipe.reconstruction is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            checkpoint = self.folder / f"{_short(json.dumps(encode(recipe), sort_keys=True))}.reconstruction"
        return quantize_with(self.net, self.data, recipe, checkpoint=checkpoint, progress=self.progress)


def _means(recipe: Recipe) -> Iterator[tuple[str, dict[str, Any]]]:
    """Names and changes of a recipe, the cheapest first; what was asked for itself is left alone."""
    yield "as asked", {}
    profile = recipe.profile()
    usual = recipe.weight_observer is None and recipe.activation_observer is None
    if usual and max(profile.weight.bits, profile.activation.bits) == 8:
        yield "ranges of least error", {"weight_observer": "mse", "activation_observer": "mse"}
    if not recipe.bias_correction and recipe.reconstruction is None:
        yield "biases corrected", {"bias_correction": True}
    if recipe.reconstruction is None:
        name = "qdrop" if profile.activation.bits < 8 else "brecq"
        yield f"roundings learned ({name})", {"reconstruction": name, "bias_correction": False}


def _raised(recipe: Recipe, layers: list[Names], what: str) -> Recipe:
    if what == "float":
        return replace(recipe, keep_float=(*recipe.keep_float, *(name for name, *_ in layers)))
    wide = dict.fromkeys((name for layer in layers for name in layer), 8)
    return replace(recipe, layer_bits={**wide, **recipe.layer_bits})


def _words(order: list[Names], count: int, what: str) -> str:
    several = f"the {count} costliest layers" if count > 1 else f"the costliest layer, {order[0][0]},"
    return f"{several} in {what}" if what == "float" else f"{several} at {what}"


def _doubling(most: int) -> list[int]:
    """1, 2, 4, … and `most` itself.

    >>> _doubling(6), _doubling(0)
    ([1, 2, 4, 6], [])
    """
    found = [1 << k for k in range(most.bit_length()) if 1 << k <= most]
    return found if not found or found[-1] == most else [*found, most]


class _Held:
    """What was found before an interruption: a file in the folder, or nothing."""

    def __init__(self, folder: Path | None, key: str) -> None:
        self.path = None if folder is None else folder / "steps.json"
        self.float: float | None = None
        self.spent = 0.0
        self._key, self._steps = key, list[StepRecord]()
        if self.path is not None and self.path.is_file():
            self._read(self.path)

    def step(self, number: int, name: str) -> StepRecord | None:
        """The step of this number, where it is done."""
        if number >= len(self._steps):
            return None
        step = self._steps[number]
        if step.name != name:
            raise ArtifactError(f"{self.path} holds {step.name!r} as step {number}, not {name!r}: delete it")
        return step

    def add(self, step: StepRecord, spent: float) -> None:
        """A step is done."""
        self._steps.append(step)
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        steps = [asdict(s) for s in self._steps]
        write_json(self.path, {"key": self._key, "float": self.float, "spent": spent, "steps": steps})

    def _read(self, path: Path) -> None:
        try:
            held = json.loads(path.read_text())
            key, steps = held["key"], [StepRecord(**s) for s in held["steps"]]
            self.float, self.spent = float(held["float"]), float(held["spent"])
        except (ValueError, KeyError, TypeError) as error:
            raise ArtifactError(f"{path} is not what a search leaves behind ({error}): delete it") from error
        if key != self._key:
            raise ArtifactError(f"{path} was left by another network or recipe. Delete it, or finish that search first")
        self._steps = steps


def _key(net: nn.Module, recipe: Recipe) -> str:
    """A hash of the recipe and of the network's weights."""
    digest = hashlib.sha256(json.dumps(encode(recipe), sort_keys=True).encode())
    for name, tensor in net.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _number(value: Any, what: str) -> float:
    try:
        found = float(value)
    except (TypeError, ValueError) as error:
        raise CalibrationError(f"the metric of {what} is no number but {type(value).__name__}") from error
    if not math.isfinite(found):
        raise CalibrationError(f"the metric of {what} is {found}: it has to be finite")
    return found
