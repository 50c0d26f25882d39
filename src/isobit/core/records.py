"""Plain records: what a run found, in a form that JSON holds and the report draws. No tensors, no modules."""

import math
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from types import UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from isobit.core.errors import ArtifactError
from isobit.core.risks import OverflowRisk, overflow_lines

Verdict = Literal["exact", "bounded", "broken"]


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """Counts over equal bins: `counts[i]` values lie in [low + i·w, low + (i+1)·w), w = (high - low) / len(counts)."""

    low: float
    high: float
    counts: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class TensorRecord:
    """One quantized tensor: its format, range and values. Per-channel ranges are given as their extremes."""

    name: str
    role: Literal["weight", "activation"]
    scheme: str
    bits: int
    quant_min: int
    quant_max: int
    clip_low: float
    clip_high: float
    scale: tuple[float, ...]
    zero_point: tuple[int, ...]
    histogram: Histogram | None = None
    clipped: float = 0.0
    """The share of values outside the range."""


@dataclass(frozen=True, kw_only=True)
class LayerRecord:
    """One quantized layer: what it costs and how much quantization disturbs it.

    `sqnr_db` and `cosine` compare its output with the float network's when everything is quantized (the
    accumulated error); `isolated_db` is the SQNR of the network's output when this layer alone is quantized;
    `sensitivity` is the share of all isolated noise power that this layer causes.
    """

    name: str
    op: str
    parameters: int = 0
    macs: int = 0
    weight_bits: int = 32
    activation_bits: int = 32
    sqnr_db: float | None = None
    cosine: float | None = None
    isolated_db: float | None = None
    isolated_cosine: float | None = None
    sensitivity: float | None = None
    tensors: tuple[TensorRecord, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SegmentRecord:
    """A reconstructed part of a network: noise over signal of its output, rounded to nearest and as learned.

    Where `learned` is not below `nearest`, rounding to nearest was kept.
    """

    name: str
    layers: tuple[str, ...]
    nearest: float
    learned: float


@dataclass(frozen=True, kw_only=True)
class CorrectionRecord:
    """A corrected bias: the largest and the mean size of what was added, over the channels."""

    layer: str
    largest: float
    mean: float


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """One step towards a promise of accuracy: its metric, None where it was not possible, and `note` says why.

    `better` says that it was the best until then.
    """

    name: str
    metric: float | None
    seconds: float
    better: bool
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class PromiseRecord:
    """What was promised, what was kept, and all steps. Metrics and drops are in the metric's own unit."""

    float_metric: float
    max_drop: float
    drop: float
    kept: bool
    steps: tuple[StepRecord, ...]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class UndoneRecord:
    """A kind of layer, timed quantized and in float within the same network: milliseconds a batch."""

    kind: str
    layers: tuple[str, ...]
    quantized_ms: float
    float_ms: float
    undone: bool


@dataclass(frozen=True, kw_only=True)
class FasterRecord:
    """The whole network in float and as it was left, in milliseconds a batch, and the kinds that were tried."""

    engine: str
    float_ms: float
    quantized_ms: float
    kinds: tuple[UndoneRecord, ...]


@dataclass(frozen=True, kw_only=True)
class RangeChoice:
    """A tensor whose range an observer chose among several rules, and which and why; min-max is not listed."""

    tensor: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class JointRangesRecord:
    """A joint search of ranges (`Lapq`): the loss `before`, at the `start` from the norm of `power`, and `after`.

    `power` is None where no norm was better than the ranges before; `left` names the quantizers that were not searched.
    """

    loss: str
    samples: int
    before: float
    start: float
    after: float
    power: float | None
    variables: int
    evaluations: int
    left: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class FloatOp:
    """An op that stays in float, and why."""

    name: str
    op: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Mismatch:
    """The first op at which two executions differ, and the rule that explains it where one is known."""

    op: str
    name: str
    differ: int
    total: int
    largest: float
    rule: str = ""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two executions of the same file on the same inputs. `largest` is in steps of the output's scale.

    `unit` is "steps" where the output is an integer times a scale, else "absolute".
    """

    left: str
    right: str
    equal: int
    total: int
    largest: float
    unit: Literal["steps", "absolute"] = "steps"
    first: Mismatch | None = None


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Images right, of how many, by execution: `float`, `simulation`, `reference`, or an engine's name."""

    execution: str
    right: int
    total: int


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """How often an engine ran a kernel, and in which precision."""

    name: str
    precision: str
    count: int


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Interleaved timings in one process: medians in milliseconds, and the ratio of the medians."""

    engine: str
    batch: int
    float_ms: float
    quantized_ms: float
    speedup: float
    runs: int
    threads: int = 1
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What is wrong with some ops of a file that others made, and what to change."""

    problem: str
    remedy: str
    ops: tuple[str, ...]
    drops_rounding: bool = False
    """Whether the engine computes other integers than the file says."""

    def __str__(self) -> str:
        more = f" and {len(self.ops) - 4} more" if len(self.ops) > 4 else ""
        return f"{', '.join(self.ops[:4])}{more}: {self.problem}. To change: {self.remedy}"


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """What `verify` proves about one file on one engine, and how. `verdict` belongs to reference = engine."""

    file: str
    sha256: str
    target: str
    engine: str
    engine_version: str
    instruction_set: str
    samples: int
    verdict: Verdict
    cause: str = ""
    comparisons: tuple[Comparison, ...] = ()
    accuracy: tuple[Accuracy, ...] = ()
    kernels: tuple[Kernel, ...] = ()
    float_islands: tuple[str, ...] = ()
    risks: tuple[OverflowRisk, ...] = ()
    """On this machine."""
    older_risks: tuple[OverflowRisk, ...] = ()
    """What else can happen with the same engine on x86 before VNNI."""
    accumulators: int | None = None
    """How many layers sum integers; None in certificates that do not say."""
    latency: tuple[Latency, ...] = ()
    findings: tuple[Finding, ...] = ()
    integers_sha256: str = ""
    versions: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{self.verdict.upper()}: {self.file} on {self.engine_version} ({self.instruction_set})"]
        lines += [f"  cause: {self.cause}"] if self.cause else []
        for c in self.comparisons:
            where = f"; first at {c.first.op} {c.first.name}" if c.first else ""
            lines.append(
                f"  {c.left} = {c.right}: {c.equal} of {c.total} outputs, largest {c.largest:g} {c.unit}{where}"
            )
        if self.accuracy:
            lines.append("  right: " + ", ".join(f"{a.execution} {a.right}/{a.total}" for a in self.accuracy))
        lines.append("  kernels: " + ", ".join(f"{k.count} {k.name} ({k.precision})" for k in self.kernels))
        islands = f"{len(self.float_islands)}: {', '.join(self.float_islands[:6])}" if self.float_islands else "none"
        lines.append(f"  ops that ran in float: {islands}")
        lines += [f"  {name}: {text}" for name, text in overflow_lines(self.risks, self.older_risks, self.accumulators)]
        lines += [f"  finding: {found}" for found in self.findings]
        return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """Everything that one run found; `isobit.report` turns it into a page."""

    title: str
    network: str
    target: str
    target_source: str
    recipe: dict[str, Any]
    seed: int
    versions: dict[str, str]
    layers: tuple[LayerRecord, ...]
    float_ops: tuple[FloatOp, ...] = ()
    ranges: tuple[RangeChoice, ...] = ()
    warnings: tuple[str, ...] = ()
    accuracy: tuple[Accuracy, ...] = ()
    latency: tuple[Latency, ...] = ()
    certificates: tuple[Certificate, ...] = ()
    findings: tuple[Finding, ...] = ()
    """About a file that others made."""
    float_bytes: int = 0
    quantized_bytes: int = 0
    macs: int = 0
    bitops: int = 0
    seconds: float = 0.0
    command: str = ""
    """The command line of the run, empty where Python started it."""


T = TypeVar("T")


def to_json(record: Any) -> Any:
    """A record as dicts, lists and plain values; infinities and NaN, which JSON has no numbers for, as texts."""
    return _plain(asdict(record) if is_dataclass(record) and not isinstance(record, type) else record)


def from_json(kind: type[T], value: Any) -> T:
    """The inverse of `to_json`; raises ArtifactError that names the unknown or missing key.

    >>> from_json(Accuracy, {"execution": "float", "right": 9, "total": 10}).right
    9
    """
    if not isinstance(value, dict):
        raise ArtifactError(f"expected a {kind.__name__} record, got {type(value).__name__}")
    hints = get_type_hints(kind)
    known = {f.name for f in fields(kind)}  # type: ignore[arg-type]
    if unknown := set(value) - known:
        raise ArtifactError(f"a {kind.__name__} record has no key {sorted(unknown)[0]!r}")
    try:
        return kind(**{key: _typed(hints[key], item) for key, item in value.items()})
    except TypeError as error:
        raise ArtifactError(f"an incomplete {kind.__name__} record: {error}") from error


def _typed(hint: Any, value: Any) -> Any:
    if get_origin(hint) is tuple:
        inner = get_args(hint)[0]
        return tuple(_typed(inner, item) for item in value)
    if get_origin(hint) is UnionType:
        inner = next((a for a in get_args(hint) if is_dataclass(a) or a is float), None)
        return _typed(inner, value) if inner is not None and value is not None else value
    if hint is float and isinstance(value, str):
        return _number(value)
    if isinstance(hint, type) and is_dataclass(hint):
        return from_json(hint, value)
    return value


def _number(text: str) -> float:
    if text not in ("inf", "-inf", "nan"):
        raise ArtifactError(f"expected a number in a record, got {text!r}")
    return float(text)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value
