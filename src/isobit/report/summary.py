"""What a reader wants first, computed from a run record: verdict, accuracy, speed, size, formats."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from isobit.core.records import Accuracy, Certificate, Latency, LayerRecord, RunRecord, Verdict

VERDICTS: dict[Verdict | None, tuple[str, str]] = {
    "exact": ("Exact", "Every integer of the engine equals the integer reference."),
    "bounded": ("Bounded", "The engine differs from the integer reference, within a bound whose cause is known."),
    "broken": ("Broken", "The engine does not compute what the integer reference computes."),
    None: ("Not verified", "No certificate: the file was not compared with an engine."),
}
"""The word and the sentence of each verdict; None is a run without a certificate."""

_OURS = ("float", "simulation", "reference")


@dataclass(frozen=True, kw_only=True, slots=True)
class AccuracyRow:
    """One execution's accuracy with its 95 % interval and its place on an axis, all as shares of one."""

    execution: str
    right: int
    total: int
    share: float
    low: float
    high: float
    difference: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """A piece of the axis of shares on which accuracies are drawn."""

    low: float
    high: float

    def place(self, share: float) -> float:
        """Where a share lies, in percent of the axis."""
        return round(100 * (share - self.low) / (self.high - self.low), 3)


def verdict(record: RunRecord) -> Verdict | None:
    """The worst verdict of a run's certificates, None where there is none."""
    found = {certificate.verdict for certificate in record.certificates}
    order: tuple[Verdict, ...] = ("broken", "bounded", "exact")
    return next((v for v in order if v in found), None)


def causes(record: RunRecord) -> str:
    """The causes named by the certificates that have the run's verdict."""
    worst = verdict(record)
    named = [c.cause for c in record.certificates if c.verdict == worst and c.cause]
    return "; ".join(dict.fromkeys(named))


def wilson(right: int, total: int) -> tuple[float, float]:
    """The 95 % score interval of a share (Wilson, JASA 1927, doi:10.1080/01621459.1927.10502953).

    (p + z²/2n ± z·sqrt(p(1 − p)/n + z²/4n²)) / (1 + z²/n) with z = 1.959964.

    >>> tuple(round(x, 4) for x in wilson(50, 100))
    (0.4038, 0.5962)
    """
    z, p = 1.959963984540054, right / total
    middle = p + z * z / (2 * total)
    half = z * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def accuracy_rows(accuracies: Iterable[Accuracy]) -> list[AccuracyRow]:
    """Rows for the executions that saw at least one image, float first, without repetitions."""
    known = [a for a in dict.fromkeys(accuracies) if a.total > 0]
    known.sort(key=lambda a: _OURS.index(a.execution) if a.execution in _OURS else len(_OURS))
    base = next((a.right / a.total for a in known if a.execution == "float"), None)
    rows = []
    for a in known:
        share, (low, high) = a.right / a.total, wilson(a.right, a.total)
        difference = None if base is None or a.execution == "float" else share - base
        rows.append(
            AccuracyRow(
                execution=a.execution,
                right=a.right,
                total=a.total,
                share=share,
                low=low,
                high=high,
                difference=difference,
            )
        )
    return rows


def all_accuracies(record: RunRecord) -> list[AccuracyRow]:
    """The run's accuracies and those of its certificates."""
    return accuracy_rows([*record.accuracy, *(a for c in record.certificates for a in c.accuracy)])


def float_and_quantized(record: RunRecord) -> tuple[AccuracyRow | None, AccuracyRow | None]:
    """The float accuracy and the best witness of the quantized one: engine, else reference, else simulation."""
    rows = {row.execution: row for row in reversed(all_accuracies(record))}
    engine = next((name for name in reversed(rows) if name not in _OURS), None)
    witness = next((name for name in (engine, "reference", "simulation") if name in rows), None)
    return rows.get("float"), rows[witness] if witness is not None else None


def axis(rows: Iterable[AccuracyRow]) -> Axis:
    """An axis that shows every interval, with a margin, in whole percents."""
    rows = list(rows)
    low, high = min(r.low for r in rows), max(r.high for r in rows)
    margin = max(0.05 * (high - low), 0.002)
    return Axis(
        low=max(0.0, math.floor(100 * (low - margin)) / 100), high=min(1.0, math.ceil(100 * (high + margin)) / 100)
    )


def all_latencies(record: RunRecord) -> list[Latency]:
    """The run's latencies and those of its certificates, without repetitions."""
    return list(dict.fromkeys([*record.latency, *(x for c in record.certificates for x in c.latency)]))


def size_ratio(record: RunRecord) -> float | None:
    """How many times smaller the quantized file is."""
    if record.float_bytes <= 0 or record.quantized_bytes <= 0:
        return None
    return record.float_bytes / record.quantized_bytes


def bitops_ratio(record: RunRecord) -> float | None:
    """How many times fewer bit operations than 32 × 32 bits for each multiply-accumulate."""
    return record.macs * 32 * 32 / record.bitops if record.macs > 0 and record.bitops > 0 else None


def weakest(record: RunRecord) -> LayerRecord | None:
    """The layer with the lowest SQNR."""
    measured = [layer for layer in record.layers if layer.sqnr_db is not None and not math.isnan(layer.sqnr_db)]
    return min(measured, key=lambda layer: layer.sqnr_db or 0.0, default=None)


def most_sensitive(record: RunRecord) -> LayerRecord | None:
    """The layer that alone causes the most noise."""
    measured = [x for x in record.layers if x.sensitivity is not None and not math.isnan(x.sensitivity)]
    return max(measured, key=lambda layer: layer.sensitivity or 0.0, default=None)


def bit_widths(record: RunRecord) -> list[tuple[str, int]]:
    """Pairs of weight and activation bits and how many layers have them, the most frequent first.

    A layer with 32 bits on both sides is float.
    """
    return Counter(widths(layer) for layer in record.layers).most_common()


def widths(layer: LayerRecord) -> str:
    """A layer's bits as W8A8, or as A8 where it has no weight."""
    bare = layer.parameters == 0 and layer.weight_bits == 32
    return f"A{layer.activation_bits}" if bare else f"W{layer.weight_bits}A{layer.activation_bits}"


def schemes(record: RunRecord) -> list[tuple[str, str, int, int]]:
    """(role, scheme, bits, number of tensors) for every scheme in use, weights first."""
    used = Counter((t.role, t.scheme, t.bits) for layer in record.layers for t in layer.tensors)
    return [(*key, n) for key, n in sorted(used.items(), key=lambda item: (item[0][0] != "weight", -item[1]))]


def flat(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """A recipe as dotted keys and JSON values, in its own order.

    >>> list(flat({"bits": 8, "weight": {"grid": "uniform", "axis": [0, 1]}}))
    [('bits', '8'), ('weight.grid', 'uniform'), ('weight.axis', '[0, 1]')]
    """
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from flat(item, f"{path}.{key}" if path else str(key))
    elif path:
        yield path, value if isinstance(value, str) else json.dumps(value, default=str)


def precisions(certificate: Certificate) -> list[tuple[str, int]]:
    """How many kernel calls ran in each precision, the most frequent first."""
    calls: Counter[str] = Counter()
    for kernel in certificate.kernels:
        calls[kernel.precision] += kernel.count
    return calls.most_common()
