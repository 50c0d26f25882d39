"""Verification: the same inputs through simulation, integer reference and engine, and a certificate of what agreed."""

from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import torch
from torch import Tensor, fx, nn

from isobit.analysis.referee import check_judgeable, judge
from isobit.analysis.referee_litert import judge_litert
from isobit.core.batches import Batch, Data, batches
from isobit.core.errors import ArtifactError, EngineError
from isobit.core.files import sha256_of_file
from isobit.core.litert_file import is_litert
from isobit.core.onnx_file import graph_inputs
from isobit.core.progress import Progress, silent
from isobit.core.records import Accuracy, Certificate, Comparison, Finding, Latency, Mismatch, Verdict
from isobit.core.risks import OverflowRisk, pair_text
from isobit.engines import Engine, Session
from isobit.graph.convert import convert, hash_integers
from isobit.graph.deployed_activations import ActivationQuantizer
from isobit.integer import Reference, accumulating, first_difference, overflow_risks, quantized_tensors
from isobit.integer.files import check_runs, format_of, load_qdq, metadata_of, output_step, places_of, random_inputs
from isobit.integer.inputs import fitted
from isobit.integer.qoperator import rules_for

LOCATED = 8
"""Samples of a batch in which the first op that differs is looked for: every tensor of theirs is kept and compared."""
CLOSE = 1e-4
"""Relative difference that the float result of a last layer may show where all integers before it are equal."""


_Found = dict[tuple[str, bytes], dict[str, np.ndarray]]
"""What an execution gave at each quantizer, by its name and the inputs."""


@dataclass
class _Tally:
    """Running comparison of two executions."""

    left: str
    right: str
    step: float | None
    equal: int = 0
    total: int = 0
    largest: float = 0.0
    scale: float = 0.0
    first: Mismatch | None = None

    def add(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Compare one batch of outputs; returns which of them are equal."""
        if a.shape != b.shape:
            raise ArtifactError(f"{self.left} gives an output of the shape {a.shape}, {self.right} of {b.shape}")
        difference = np.abs(a.astype(np.float64) - b.astype(np.float64)) / (self.step or 1.0)
        same: np.ndarray = difference < 0.5 if self.step else a == b
        self.equal, self.total = self.equal + int(same.sum()), self.total + a.size
        if difference.size:
            self.largest = max(self.largest, float(difference.max()))
            self.scale = max(self.scale, float(np.abs(a).max()))
        return same

    def record(self) -> Comparison:
        unit: Literal["steps", "absolute"] = "steps" if self.step else "absolute"
        largest = float(round(self.largest)) if self.step else self.largest
        return Comparison(
            left=self.left, right=self.right, equal=self.equal, total=self.total, largest=largest, unit=unit,
            first=self.first,
        )  # fmt: skip


@dataclass
class _Executions:
    """The three executions of one file, and what they disagree on."""

    path: Path
    file: onnx.ModelProto
    engine: Engine
    simulation: fx.GraphModule | None
    reference: Reference
    session: Session
    tallies: dict[tuple[str, str], _Tally] = field(default_factory=dict)
    right: dict[str, int] = field(default_factory=dict)
    labelled: int = 0
    samples: int = 0
    changes: bool = False

    def see(self, batch: Batch) -> None:
        """Run one batch through all three and compare pair by pair."""
        arrays = [x.numpy() for x in batch.inputs]
        engine = self.session.run(arrays)[0]  # first: it says what is wrong with inputs that do not fit the file
        outputs = {"reference": self.reference.run(arrays, keep=()).outputs[0], self.engine.name: engine}
        if self.simulation is not None:
            outputs = {"simulation": first_output(self.simulation(*batch.inputs)).numpy(), **outputs}
        found: _Found = {}
        for pair, tally in self.tallies.items():
            same = tally.add(*(outputs[name] for name in pair))
            if not same.all() and tally.first is None:
                few = self.differing(batch, same)  # alone they may agree: kernels sum otherwise for other batches
                tally.first = self.locate(pair, few, found) or self.locate(pair, batch.inputs, found)
        self.samples += batch.size
        if batch.labels is not None:
            if engine.ndim < 2:
                raise ArtifactError(f"labels need one row of classes for each sample, the file gives {engine.shape}")
            self.labelled += batch.size
            for name, y in outputs.items():
                self.right[name] = self.right.get(name, 0) + int((y.argmax(1) == batch.labels.numpy()).sum())

    def differing(self, batch: Batch, same: np.ndarray) -> tuple[Tensor, ...]:
        """The inputs of the first samples with unequal outputs; the whole batch where the file has a fixed size."""
        if len(same) != batch.size or not self.any_batch:
            return batch.inputs
        chosen = torch.from_numpy(np.flatnonzero(~same.reshape(len(same), -1).all(1))[:LOCATED])
        return tuple(x[chosen] for x in batch.inputs)

    def locate(self, pair: tuple[str, str], inputs: tuple[Tensor, ...], found: _Found) -> Mismatch | None:
        """The first op, in the order of the file, whose integers differ between two executions.

        `found` keeps what each execution gave for these inputs: two pairs often differ in the same samples.
        """
        arrays = [x.numpy() for x in inputs]
        key = b"".join(x.tobytes() for x in arrays)
        for name in pair:
            if (name, key) in found:
                continue
            if name == "reference":
                found[name, key] = dict(self.reference.run(arrays).integers)
            elif name == "simulation" and self.simulation is not None:
                found[name, key] = simulated_integers(self.simulation, self.file, inputs)
            else:
                found[name, key], self.changes = self.exposed(quantized_tensors(self.file), arrays)
        one, other = (found[name, key] for name in pair)
        if self.changes and self.engine.arithmetic.adds_in_convolution and pair[1] == self.engine.name:
            other = self.one_by_one(arrays, one)
        if not set(one) & set(other):
            return None
        return first_difference(self.file, one, other, self.reference.arithmetic)

    @cached_property
    def any_batch(self) -> bool:
        """Whether the file takes any number of samples."""
        sizes = [value.type.tensor_type.shape.dim for value in graph_inputs(self.file)]
        return all(len(dims) and not dims[0].HasField("dim_value") for dims in sizes)

    def exposed(self, names: Sequence[str], arrays: list[np.ndarray]) -> tuple[dict[str, np.ndarray], bool]:
        """The engine's integers, from a session that returns them, and whether that changes the file's outputs.

        To return a tensor may change what an engine fuses.
        """
        plain = dict(zip(self.session.outputs, self.session.run(arrays), strict=True))
        try:
            session = self.engine.load(self.path, expose=names)
            values = dict(zip(session.outputs, session.run(arrays), strict=True))
        except EngineError:
            return {}, False
        same = all(np.array_equal(values[name], y, equal_nan=True) for name, y in plain.items())
        return {name: values[name] for name in names}, not same

    def one_by_one(self, arrays: list[np.ndarray], expected: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The integers of one tensor after the other, as far as returning it changes nothing, up to the first that is
        not as expected: where an engine adds inside of convolutions, to return all has it compute another sum."""
        seen: dict[str, np.ndarray] = {}
        for name in (n for n in quantized_tensors(self.file) if n in expected):
            values, changes = self.exposed((name,), arrays)
            if changes or name not in values:
                continue
            seen[name] = values[name]
            if not np.array_equal(seen[name], expected[name]):
                break
        return seen


def verify(
    path: str | Path,
    model: fx.GraphModule | None,
    data: Data | None,
    *,
    engine: Engine,
    latency: tuple[Latency, ...] = (),
    progress: Progress = silent,
) -> Certificate:
    """Prove that an exported file does on an engine what was simulated, or name the op that differs.

    `model` is what `isobit.quantize` returned; without it the simulation is left out. `data` are any inputs,
    with labels where accuracy is wanted; without it they are drawn at random over the range of the file's first
    quantizers. The verdict compares the integer reference with the engine: *exact* (all outputs equal),
    *bounded* (they differ, the first op by one step, and the cause is named) or *broken*.

    A file that others made (QDQ) gets findings too: which ops ran in float or not as it says, and what to change.

    Raises ArtifactError for a file that is truncated, hostile, float, or not of this model, EngineError where the
    engine is missing or refuses it, CalibrationError for unusable data.
    """
    path = Path(path)
    if engine.format != format_of(path):
        raise EngineError(f"{engine.name} takes files of the format {engine.format}, and {path} is none")
    file = load_qdq(path)
    metadata = metadata_of(file)
    check_runs(path, metadata)
    if not metadata:
        _check_foreign(file, path, model)
    data = random_inputs(file) if data is None else data
    deployed = None if model is None else _deployed(path, model, metadata)
    reference = Reference(file, rules_for(file, engine.arithmetic))
    runs = _Executions(path, file, engine, deployed, reference, engine.load(path))
    step = output_step(file)
    pairs = [("reference", engine.name)]
    if deployed is not None:
        pairs += [("simulation", "reference"), ("simulation", engine.name)]
    runs.tallies = {pair: _Tally(*pair, step=step) for pair in pairs}
    total = len(data) if isinstance(data, Sized) else None
    with torch.inference_mode():
        for done, batch in enumerate(fitted(file, batches(data, name="verification data")), start=1):
            runs.see(batch)
            progress("verifying", done, total)
    return _certificate(runs, metadata, latency)


def _check_foreign(file: onnx.ModelProto, path: Path, model: fx.GraphModule | None) -> None:
    """Raise where a file without isobit's metadata cannot be judged, or a simulation is said to belong to it."""
    if model is not None:
        raise ArtifactError(
            f"{path} was not written by isobit: it carries no isobit metadata, so it is not this model's. Export the "
            "model with isobit.export, or verify the file without a model"
        )
    if is_litert(path):
        judge_litert(path)
    else:
        check_judgeable(file, path)


def _deployed(path: Path, model: fx.GraphModule, metadata: dict[str, str]) -> fx.GraphModule:
    """The simulation, after a check that the file holds its integers."""
    deployed = convert(model)
    if metadata["isobit.integers_sha256"] != hash_integers(deployed):
        raise ArtifactError(
            f"{path} holds other integers than this model: it was exported from another network, recipe or "
            "calibration. Export the model again"
        )
    return deployed


def simulated_integers(model: nn.Module, file: onnx.ModelProto, inputs: tuple[Tensor, ...]) -> dict[str, np.ndarray]:
    """The integers at every quantizer of the simulation, under the names that the file gives them.

    Both list their quantizers in the order in which they run; empty where the file has merged some of them.
    """
    places = places_of(file)
    found: list[np.ndarray] = []

    def keep(module: nn.Module, _: object, y: Tensor) -> None:
        assert isinstance(module, ActivationQuantizer)
        found.append(((y / module.scale).round() + module.zero_point.to(y.dtype)).to(module.zero_point.dtype).numpy())

    hooks = [m.register_forward_hook(keep) for m in model.modules() if isinstance(m, ActivationQuantizer)]
    try:
        model(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    if len(places) != len(found):
        return {}
    return {place.name: place.of(q) for place, q in zip(places, found, strict=True)}


def first_output(y: object) -> Tensor:
    """The tensor that is compared: the output, or the first of several."""
    while isinstance(y, (tuple, list, dict)):
        y = next(iter(y.values())) if isinstance(y, dict) else y[0]
    if not isinstance(y, Tensor):
        raise ArtifactError(f"the network returns {type(y).__name__}, not a tensor: there is nothing to compare")
    return y.detach()


def _certificate(runs: _Executions, metadata: dict[str, str], latency: tuple[Latency, ...]) -> Certificate:
    engine, islands = runs.engine, runs.session.float_islands()
    findings = () if metadata else _findings(runs, islands)
    verdict, cause = _verdict(runs, next((f.problem for f in findings if f.drops_rounding), ""))
    if verdict == "broken" and (advice := getattr(runs.engine, "advice", "")):
        cause = f"{cause}. {advice}"
    return Certificate(
        file=runs.path.name,
        sha256=sha256_of_file(runs.path),
        target=metadata.get("isobit.target", "unknown"),
        engine=engine.name,
        engine_version=engine.version(),
        instruction_set=engine.instruction_set(),
        samples=runs.samples,
        verdict=verdict,
        cause=cause,
        comparisons=tuple(t.record() for t in runs.tallies.values()),
        accuracy=tuple(Accuracy(execution=k, right=v, total=runs.labelled) for k, v in runs.right.items()),
        kernels=runs.session.kernels(),
        float_islands=islands,
        findings=findings,
        accumulators=len(accumulating(runs.file, engine.arithmetic)),
        risks=overflow_risks(runs.file, engine.arithmetic),
        older_risks=_older_risks(runs),
        latency=latency,
        integers_sha256=metadata.get("isobit.integers_sha256", ""),
        versions={name: version(name) for name in ("isobit", "torch", "onnx")},
    )


def _findings(runs: _Executions, islands: tuple[str, ...]) -> tuple[Finding, ...]:
    """What is to know of a file that others made."""
    if is_litert(runs.path):
        return judge_litert(runs.path)
    return judge(runs.file, runs.engine.arithmetic, engine=runs.engine.name, islands=islands)


def _older_risks(runs: _Executions) -> tuple[OverflowRisk, ...]:
    """The pairs that saturate with this engine on x86 before VNNI, where this machine is none."""
    arithmetic = runs.engine.arithmetic
    if arithmetic.pair_bits is not None or arithmetic.older_pair_bits is None:
        return ()
    return tuple(r for r in overflow_risks(runs.file, arithmetic.before_vnni) if r.kind == "pair")


def _verdict(runs: _Executions, known: str) -> tuple[Verdict, str]:
    """The verdict on reference = engine, and the cause where they differ; `known` is one that a finding names."""
    tally = runs.tallies["reference", runs.engine.name]
    if tally.equal == tally.total:
        return "exact", ""
    floats = runs.reference.float_ops
    if tally.first is None:
        if known:  # returning the inner tensors keeps the engine from fusing, so no op is seen to differ
            return ("bounded" if tally.largest <= _limit(tally) else "broken"), known
        if tally.step is None and tally.largest <= CLOSE * max(tally.scale, 1e-30):
            return "bounded", _float_cause(runs)
        if runs.reference.rounded_inputs:
            cause = (
                f"{_float_cause(runs)}. A float that falls on the other side of a middle is a step in the next layer"
            )
            return ("bounded" if tally.largest <= _limit(tally) else "broken"), cause
        cause = f"ops with float results, which no two programs round alike: {', '.join(floats[:3])}" if floats else ""
        cause = cause or f"{runs.engine.name} does not show its integers: the arithmetic of a fused op differs"
        return ("bounded" if tally.largest <= _limit(tally) else "broken"), cause
    rule = f"{tally.first.op} {tally.first.name} differs first, by {tally.first.largest:g} ({tally.first.rule})"
    if text := pair_text([r for r in overflow_risks(runs.file, runs.engine.arithmetic) if r.layer == tally.first.name]):
        rule += f"; {text}"
    islands = set(runs.session.float_islands())
    if islands:
        rule += f"; {runs.engine.name} runs {len(islands)} ops in float"
    return ("bounded" if tally.first.largest <= 1 else "broken"), rule


def _float_cause(runs: _Executions) -> str:
    """Why results that are close to each other are not equal."""
    if rounded := runs.reference.rounded_inputs:
        return (
            f"the kernels of {len(rounded)} MatMulNBits (accuracy_level 4) round float inputs to 8 bits in groups; so "
            "does the reference, from which they differ as float sums in another order do, but not the simulation"
        )
    if not quantized_tensors(runs.file):
        first = ", ".join(runs.reference.float_ops[:3])
        return f"the file keeps results in float, and sums that are taken in another order round differently: {first}"
    return "all integers are equal; the last layer's result is float and rounds differently"


def _limit(tally: _Tally) -> float:
    """Without a located op: a tenth of the output's range counts as rounding that cascaded."""
    return 0.1 * tally.scale / (tally.step or 1.0)
