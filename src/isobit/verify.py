"""Verification: the same inputs through simulation, integer reference and engine, and a certificate of what agreed."""

from collections.abc import Sized
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import torch
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from torch import Tensor, fx, nn

from isobit.core.batches import Batch, Data, batches
from isobit.core.errors import ArtifactError, EngineError
from isobit.core.files import sha256_of_file
from isobit.core.progress import Progress, silent
from isobit.core.records import Accuracy, Certificate, Comparison, Latency, Mismatch, Verdict
from isobit.engines import Engine, Session
from isobit.graph.convert import convert, hash_integers
from isobit.graph.deployed_activations import ActivationQuantizer
from isobit.integer import Reference, first_difference, overflow_risks, quantized_tensors

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
    engine: Engine
    simulation: fx.GraphModule | None
    reference: Reference
    session: Session
    tallies: dict[tuple[str, str], _Tally] = field(default_factory=dict)
    right: dict[str, int] = field(default_factory=dict)
    labelled: int = 0
    samples: int = 0

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
                found[name, key] = simulated_integers(self.simulation, self.path, inputs)
            else:
                found[name, key] = self.engine_integers(arrays)
        one, other = (found[name, key] for name in pair)
        if not set(one) & set(other):
            return None
        return first_difference(self.path, one, other, self.reference.arithmetic)

    @cached_property
    def any_batch(self) -> bool:
        """Whether the file takes any number of samples."""
        sizes = [value.type.tensor_type.shape.dim for value in onnx.load(self.path).graph.input]
        return all(len(dims) and not dims[0].HasField("dim_value") for dims in sizes)

    def engine_integers(self, arrays: list[np.ndarray]) -> dict[str, np.ndarray]:
        """The engine's own integers, from a session that returns them. They may change what it fuses."""
        names = quantized_tensors(self.path)
        try:
            session = self.engine.load(self.path, expose=names)
            values = dict(zip(session.outputs, session.run(arrays), strict=True))
        except EngineError:
            return {}
        return {name: values[name] for name in names}


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

    Raises ArtifactError for a file that is truncated, foreign, or not of this model, EngineError where the
    engine is missing or refuses it, CalibrationError for unusable data.
    """
    path = Path(path)
    metadata = read_metadata(path)
    check_runs(path, metadata)
    deployed = None if model is None else _deployed(path, model, metadata)
    session = engine.load(path)
    runs = _Executions(path, engine, deployed, Reference(path, engine.arithmetic), session)
    step = output_step(path)
    pairs = [("reference", engine.name)]
    if deployed is not None:
        pairs += [("simulation", "reference"), ("simulation", engine.name)]
    runs.tallies = {pair: _Tally(*pair, step=step) for pair in pairs}
    data = random_inputs(path) if data is None else data
    total = len(data) if isinstance(data, Sized) else None
    with torch.inference_mode():
        for done, batch in enumerate(batches(data, name="verification data"), start=1):
            runs.see(batch)
            progress("verifying", done, total)
    return _certificate(runs, metadata, latency)


def _deployed(path: Path, model: fx.GraphModule, metadata: dict[str, str]) -> fx.GraphModule:
    """The simulation, after a check that the file holds its integers."""
    deployed = convert(model)
    if metadata["isobit.integers_sha256"] != hash_integers(deployed):
        raise ArtifactError(
            f"{path} holds other integers than this model: it was exported from another network, recipe or "
            "calibration. Export the model again"
        )
    return deployed


def random_inputs(path: Path, *, samples: int = 32, seed: int = 0) -> list[tuple[tuple[Tensor, ...]]]:
    """Inputs drawn uniformly over the range of the quantizer that reads each input, in batches of 8."""
    graph = onnx.load(path).graph
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    generator = torch.Generator().manual_seed(seed)
    found: list[Tensor] = []
    for value in graph.input:
        sizes = [d.dim_value or samples for d in value.type.tensor_type.shape.dim]
        reader = next((n for n in graph.node if n.op_type == "QuantizeLinear" and n.input[0] == value.name), None)
        if reader is None:
            raise ArtifactError(f"no quantizer reads the input {value.name!r}, so its range is unknown: give data")
        scale, zero_point = float(constants[reader.input[1]]), constants[reader.input[2]]
        lowest = int(np.iinfo(zero_point.dtype).min) - int(zero_point)
        found.append((torch.rand([samples, *sizes[1:]], generator=generator) * 255 + lowest) * scale)
    return [(tuple(x[i : i + 8] for x in found),) for i in range(0, samples, 8)]


def read_metadata(path: Path) -> dict[str, str]:
    """What isobit stored in a file; raises ArtifactError for one that is missing, truncated or foreign."""
    if not path.is_file():
        raise ArtifactError(f"there is no file {path}")
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except (DecodeError, onnx.checker.ValidationError, OSError) as error:
        raise ArtifactError(
            f"{path} is truncated, or not an ONNX file: {_first_line(error)}. Export it again"
        ) from error
    found = {entry.key: entry.value for entry in model.metadata_props}
    if "isobit.integers_sha256" not in found:
        raise ArtifactError(
            f"{path} was not written by isobit: it carries no isobit metadata, so nothing says what it should compute. "
            "Export the model with isobit.export"
        )
    return found


def check_runs(path: Path, metadata: dict[str, str]) -> None:
    """Raise ArtifactError for a file in a form for other tools, which the integer reference does not read."""
    found = metadata.get("isobit.format", "onnx")
    if found != "onnx":
        raise ArtifactError(
            f"{path} has the format {found}, and isobit verifies the format onnx: export the model to that one too, "
            "which holds the same integers, and verify it"
        )


def output_step(path: Path) -> float | None:
    """The scale of the first output where the file ends on a DequantizeLinear, else None."""
    graph = onnx.load(path).graph
    last = next((n for n in graph.node if graph.output[0].name in n.output), None)
    if last is None or last.op_type != "DequantizeLinear":
        return None
    scale = next((t for t in graph.initializer if t.name == last.input[1]), None)
    return float(onnx.numpy_helper.to_array(scale)) if scale is not None and not scale.dims else None


def simulated_integers(model: nn.Module, path: Path, inputs: tuple[Tensor, ...]) -> dict[str, np.ndarray]:
    """The integers at every quantizer of the simulation, under the names that the file gives them.

    Both list their quantizers in the order in which they run; empty where the file has merged some of them.
    """
    names = quantized_tensors(path)
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
    return dict(zip(names, found, strict=True)) if len(names) == len(found) else {}


def first_output(y: object) -> Tensor:
    """The tensor that is compared: the output, or the first of several."""
    while isinstance(y, (tuple, list, dict)):
        y = next(iter(y.values())) if isinstance(y, dict) else y[0]
    if not isinstance(y, Tensor):
        raise ArtifactError(f"the network returns {type(y).__name__}, not a tensor: there is nothing to compare")
    return y.detach()


def _certificate(runs: _Executions, metadata: dict[str, str], latency: tuple[Latency, ...]) -> Certificate:
    verdict, cause = _verdict(runs)
    engine = runs.engine
    return Certificate(
        file=runs.path.name,
        sha256=sha256_of_file(runs.path),
        target=metadata["isobit.target"],
        engine=engine.name,
        engine_version=engine.version(),
        instruction_set=engine.instruction_set(),
        samples=runs.samples,
        verdict=verdict,
        cause=cause,
        comparisons=tuple(t.record() for t in runs.tallies.values()),
        accuracy=tuple(Accuracy(execution=k, right=v, total=runs.labelled) for k, v in runs.right.items()),
        kernels=runs.session.kernels(),
        float_islands=runs.session.float_islands(),
        risks=overflow_risks(runs.path, engine.arithmetic),
        latency=latency,
        integers_sha256=metadata["isobit.integers_sha256"],
        versions={name: version(name) for name in ("isobit", "torch", "onnx")},
    )


def _verdict(runs: _Executions) -> tuple[Verdict, str]:
    """The verdict on reference = engine, and the cause where they differ."""
    tally = runs.tallies["reference", runs.engine.name]
    if tally.equal == tally.total:
        return "exact", ""
    floats = runs.reference.float_ops
    if tally.first is None:
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
    if not quantized_tensors(runs.path):
        first = ", ".join(runs.reference.float_ops[:3])
        return f"the file keeps results in float, and sums that are taken in another order round differently: {first}"
    return "all integers are equal; the last layer's result is float and rounds differently"


def _limit(tally: _Tally) -> float:
    """Without a located op: a tenth of the output's range counts as rounding that cascaded."""
    return 0.1 * tally.scale / (tally.step or 1.0)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__
