"""Latency tables: each layer alone on an engine, in float and at several widths, measured once and kept."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, final

import numpy as np
import onnx
from torch import fx, nn

from isobit.analysis.alone import drawn, forms, no_work, taken_by
from isobit.analysis.latency_cache import Held, Key, LatencyCache, processor
from isobit.analysis.onnx_layers import OnnxLayers, Part
from isobit.core.batches import Data, batches
from isobit.core.errors import EngineError, IsobitError, SettingError, UnsupportedError
from isobit.core.latency_table import FLOAT, LatencyTable, LayerLatency, LayerTime, NetworkTime
from isobit.core.progress import Progress, silent
from isobit.engines import Engine, Session
from isobit.engines.latency import CLOCKS, Clock, Job, in_turns
from isobit.export import OnnxQdq, export_float
from isobit.export.litert import write_litert
from isobit.export.litert_part import litert_part
from isobit.graph.capture import capture
from isobit.graph.passes import FoldBatchNorm, UnifyGlobalPool
from isobit.recipes.recipe import Recipe
from isobit.recipes.workflow import example_of, quantize_with

Widths = tuple[int, int]
"""Bits of weights and of activations."""


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class TableSettings:
    """Settings: `widths` beside float, each `(weight bits, activation bits)`; the target's own where there are none.

    A time is the median of `runs` runs in turns with those of the other widths, on `batch` samples, after 3 that do not
    count, less the fastest call that does nothing. `threads` is what the engine was set to.
    With `clock` "cpu", the time of this process alone counts: for one thread on a busy machine.
    """

    widths: tuple[Widths, ...] = ()
    batch: int = 1
    runs: int = 30
    threads: int = 1
    clock: Clock = "wall"

    def __post_init__(self) -> None:
        if min(self.batch, self.runs, self.threads) < 1:
            raise SettingError("batch, runs and threads have to be at least 1")
        if bad := next((w for w in self.widths if max(w) > 16 or min(w) < 1), None):
            raise SettingError(
                f"a latency table has widths of 1 to 16 bits, got W{bad[0]}A{bad[1]}; float is always there"
            )


def latency_table(
    net: nn.Module,
    data: Data,
    recipe: Recipe,
    engine: Engine,
    settings: TableSettings | None = None,
    *,
    cache: LatencyCache | None = None,
    progress: Progress = silent,
) -> LatencyTable:
    """Measure every distinct layer of a network alone, between the quantizers that `recipe`'s target puts around it.

    The whole network is quantized at each of the widths, every layer alike, and its file falls into parts: what hands
    on float values is computed as one, such as a convolution with its ReLU. Each part is a file of its own, which takes
    and gives integers; the same ops of the float network are its float time. Parts that do the same work are measured
    once, and not again where `cache` has them. The whole files are measured beside them, always.

    Values do not matter, so a few samples are enough. Raises EngineError where the engine is missing or refuses the
    whole network, UnsupportedError for an engine whose files have no parts, and what `isobit.quantize` raises.
    """
    settings = settings or TableSettings()
    if why := engine.missing():
        raise EngineError(why)
    if engine.format not in ("onnx", "litert"):
        raise UnsupportedError(
            f"files of the format {engine.format} cannot be taken apart, so {engine.name} has no times of single "
            "layers. Measure whole files: `isobit latency FILE…`"
        )
    profile = recipe.profile()
    widths = settings.widths or ((profile.weight.bits, profile.activation.bits),)
    settings = replace(settings, widths=tuple(dict.fromkeys(widths)))
    with tempfile.TemporaryDirectory() as folder:
        return _Measuring(net, data, recipe, engine, settings, cache or LatencyCache(), Path(folder)).table(progress)


class _Measuring:
    """The files of one network at all widths, and their parts."""

    def __init__(
        self, net: nn.Module, data: Data, recipe: Recipe, engine: Engine, settings: TableSettings, cache: LatencyCache,
        folder: Path,
    ) -> None:  # fmt: skip
        self.engine, self.settings, self.cache, self.folder, self.recipe = engine, settings, cache, folder, recipe
        first = next(iter(batches(data)))
        self.inputs = [np.ascontiguousarray(x.numpy()[np.arange(settings.batch) % len(x)]) for x in first.inputs]
        self.files: dict[Widths, onnx.ModelProto] = {}
        for widths in settings.widths:
            model = quantize_with(net, data, at_widths(recipe, widths))
            self.files[widths] = self._exported(model)
        self.files[FLOAT] = onnx.load(float_file(net, first.inputs, folder / "float.onnx"))
        self.parts = {widths: OnnxLayers(file, batch=settings.batch) for widths, file in self.files.items()}
        self.whole = {widths: self._loaded_whole(file) for widths, file in self.files.items()}
        self.call: Job = self._loaded(no_work())
        self.machine = (engine.version(), engine.instruction_set(), processor())

    def table(self, progress: Progress) -> LatencyTable:
        """Measure what is not held, and the whole files."""
        groups = self.parts[self.settings.widths[0]].groups()
        rows: list[LayerLatency] = []
        jobs: list[Job] = [self.call, *((session, self.inputs) for session in self.whole.values())]
        whole: list[list[float]] = [[] for _ in jobs]  # among the layers, so that all see the same machine
        for number, names in enumerate(groups):
            progress(f"timing layers on {self.engine.name}", number, len(groups))
            rows.append(self._row(names))
            for so_far, times in zip(whole, self._in_turns(jobs, runs=1, warmup=1), strict=True):
                so_far.extend(times)
        for so_far, times in zip(whole, self._in_turns(jobs, runs=self.settings.runs), strict=True):
            so_far.extend(times)
        version, instructions, model = self.machine
        return LatencyTable(
            target=self.recipe.target, engine=self.engine.name, engine_version=version, instruction_set=instructions,
            processor=model, threads=self.settings.threads, batch=self.settings.batch, runs=self.settings.runs,
            layers=tuple(rows), network=self._network(rows, whole),
        )  # fmt: skip

    def _row(self, names: Sequence[str]) -> LayerLatency:
        quantizers = self.engine.format == "litert"
        cut = {widths: file.part(names, quantizers=quantizers) for widths, file in self.parts.items()}
        found = {widths: part for widths, part in cut.items() if part is not None}
        keys = {widths: self._key(widths, part) for widths, part in found.items()}
        held = {w: h for w, key in keys.items() if (h := self.cache.find(key, runs=self.settings.runs)) is not None}
        fresh, refused = self._measured({w: part for w, part in found.items() if w not in held})
        self.cache.keep({keys[w]: h for w, h in fresh.items()})
        times = []
        for w, part in found.items():
            time = held.get(w) or fresh.get(w)
            inside = kinds_of(self.whole[w].float_islands(), self.files[w], part.ops) if w != FLOAT else ()
            alone = tuple(kind for kind in time.in_float if kind not in inside) if time else ()
            times.append(
                LayerTime(
                    weight_bits=w[0], activation_bits=w[1], ms=time.ms if time else None, in_float=inside,
                    alone_in_float=alone, held=w in held, refused=refused.get(w, ""),
                )
            )  # fmt: skip
        first = found[self.settings.widths[0]]
        return LayerLatency(name=first.name, ops=first.ops, what=first.what, times=tuple(times))

    def _measured(self, parts: dict[Widths, Part]) -> tuple[dict[Widths, Held], dict[Widths, str]]:
        """The parts of one layer in turns, at all widths that the engine takes; and why it does not take the others.

        Of the forms of a part the one counts that has the fewest ops in float, then the fastest.
        """
        tried: list[tuple[Widths, tuple[str, ...], Job]] = []
        refused: dict[Widths, str] = {}
        for widths, part in parts.items():
            for form in forms(part.model) if self.engine.format == "onnx" else [part.model]:
                try:
                    session, inputs = self._loaded(form)
                    session.run(inputs)
                except IsobitError as error:
                    refused[widths] = str(error).replace(f"{self.folder}/", "")
                    continue
                islands = () if widths == FLOAT else kinds_of(session.float_islands(), part.model, part.ops)
                tried.append((widths, islands, (session, inputs)))
        if not tried:
            return {}, refused
        call, *times = self._in_turns([self.call, *(job for _, _, job in tried)], runs=self.settings.runs)
        found: dict[Widths, Held] = {}
        for (widths, islands, _), each in zip(tried, times, strict=True):
            ms = max(median(each) - min(call), 0.0)
            before = found.get(widths)
            if before is None or (len(islands), ms) < (len(before.in_float), before.ms):
                found[widths] = Held(ms=ms, runs=self.settings.runs, in_float=islands, what=parts[widths].what)
        return found, {w: text for w, text in refused.items() if w not in found}

    def _in_turns(self, jobs: Sequence[Job], *, runs: int, warmup: int = 3) -> list[list[float]]:
        return in_turns(jobs, runs=runs, warmup=warmup, clock=CLOCKS[self.settings.clock])

    def _network(self, rows: Sequence[LayerLatency], whole: list[list[float]]) -> tuple[NetworkTime, ...]:
        call, *others = whole
        found = []
        for widths, times in zip(self.files, others, strict=True):
            own = [(r.name, t) for r in rows for t in r.times if (t.weight_bits, t.activation_bits) == widths]
            found.append(
                NetworkTime(
                    weight_bits=widths[0], activation_bits=widths[1], ms=max(median(times) - min(call), 0.0),
                    layers_ms=sum(t.ms for _, t in own if t.ms is not None),
                    left_out=tuple(name for name, t in own if t.ms is None),
                )
            )  # fmt: skip
        return tuple(found)

    def _key(self, widths: Widths, part: Part) -> Key:
        version, instructions, model = self.machine
        bits = "float" if widths == FLOAT else f"W{widths[0]}A{widths[1]}"
        return Key(
            engine=self.engine.name, version=version, instruction_set=instructions, processor=model,
            clock=self.settings.clock, threads=self.settings.threads, batch=self.settings.batch, bits=bits,
            layer=part.signature,
        )  # fmt: skip

    def _loaded(self, model: onnx.ModelProto) -> Job:
        """A part in the engine, and inputs for it."""
        if self.engine.format == "litert":
            data, taken = litert_part(model)
            path = self.folder / "part.tflite"
            path.write_bytes(data)
        else:
            taken = taken_by(model)
            path = self.folder / "part.onnx"
            onnx.save(model, path)
        return self.engine.load(path), drawn(taken)

    def _loaded_whole(self, file: onnx.ModelProto) -> Session:
        path = self.folder / "whole.onnx"
        if self.engine.format == "litert":
            path = path.with_suffix(".tflite")
            write_litert(path, file, {})
        else:
            onnx.save(file, path)
        return self.engine.load(path)

    def _exported(self, model: fx.GraphModule) -> onnx.ModelProto:
        exporter = OnnxQdq(packed=self.engine.format != "litert")
        return onnx.load(exporter.export(model, self.folder / "quantized.onnx", example=example_of(model)).path)


def at_widths(recipe: Recipe, widths: Widths) -> Recipe:
    """The recipe with every layer at these widths, the first and last too, and nothing learned from data."""
    weight, activation = widths
    calibrated = recipe.profile().ranges == "calibrated"
    return replace(
        recipe, weight_bits=weight, activation_bits=activation if calibrated else recipe.activation_bits,
        layer_bits={"*": (weight, activation) if calibrated else weight}, reconstruction="none", bias_correction=False,
        joint_ranges=False,
    )  # fmt: skip


def float_file(net: nn.Module, example: tuple[Any, ...], path: Path) -> Path:
    """The float network as ONNX with the names of a quantized file: batch norm folded, global pooling as one op."""
    captured = capture(net, tuple(example))
    UnifyGlobalPool().apply(captured)
    FoldBatchNorm().apply(captured)
    return export_float(captured, path, example=tuple(example))


def kinds_of(islands: Sequence[str], file: onnx.ModelProto, ops: Sequence[str]) -> tuple[str, ...]:
    """The kinds of those ops that an engine names, by the op or by its result, among what it runs in float."""
    wanted = [n for n in file.graph.node if n.name in ops]
    return tuple(dict.fromkeys(n.op_type for n in wanted if {n.name, *n.output} & set(islands)))
