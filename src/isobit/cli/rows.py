"""Rows of the tables: how records are put into words."""

from collections.abc import Sequence

from rich.text import Text

from isobit.cli.output import Cell
from isobit.core.granularity import PerGroup
from isobit.core.records import (
    Accuracy,
    Certificate,
    Comparison,
    FasterRecord,
    FloatOp,
    JointRangesRecord,
    PromiseRecord,
    RangeChoice,
    SegmentRecord,
)
from isobit.core.risks import overflow_lines
from isobit.recipes.recipe import Recipe
from isobit.report import numbers
from isobit.report.summary import accuracy_rows

Row = tuple[str, Sequence[Cell] | Cell]

SHOWN = 6

_LOSSES = {"noise": "noise over signal", "divergence": "KL divergence", "labels": "cross-entropy"}


def target(recipe: Recipe) -> str:
    """`onnxruntime-x86, W8A8`, or `onnxruntime-weights, W4 in groups of 32, activations float`."""
    profile = recipe.profile()
    edge, weight = profile.edge_bits, profile.weight
    widths = f"W{weight.bits}" if profile.ranges == "none" else f"W{weight.bits}A{profile.activation.bits}"
    if isinstance(weight.granularity, PerGroup):
        widths += f" in groups of {weight.granularity.size}, {'no' if weight.symmetric else 'with'} zero points"
    if profile.ranges != "calibrated":
        widths += f", activations {profile.activations}"
    narrow = edge is not None and min(weight.bits, profile.activation.bits) < edge
    first_and_last = f", first and last layer W{edge}A{edge}" if narrow else ""
    return f"{profile.name}, {widths}{first_and_last}"


def certificate(found: Certificate | None) -> list[Row]:
    """Engine, agreement, kernels and overflow; nothing without a certificate."""
    if found is None:
        return []
    islands = _list(list(found.float_islands), "none: all in integers")
    return [
        ("engine", f"{found.engine_version} on {found.instruction_set}"),
        ("agreement", [comparison(c) for c in found.comparisons]),
        ("run in float", islands),
        *overflow_lines(found.risks, found.older_risks, found.accumulators),
        *([("findings", [str(x) for x in found.findings])] if found.findings else []),
    ]


def comparison(c: Comparison) -> Text:
    """`reference = onnxruntime  10,000 of 10,000 outputs`."""
    sign, style = ("=", "green") if c.equal == c.total else ("≠", "yellow")
    text = Text(f"{c.left} {sign} {c.right}", style=style) + Text(f"  {c.equal:,} of {c.total:,} outputs", style="none")
    if c.equal < c.total:
        unit = "steps of the output" if c.unit == "steps" else "absolute"
        text.append(f", at most {c.largest:g} {unit} apart")
        if c.first is not None:
            text.append(f"; first at {c.first.op} {c.first.name}")
    return text


def reconstruction(found: Sequence[SegmentRecord]) -> list[Row]:
    """What learning the roundings gained: the noise of the last segment, and the segments that gained nothing."""
    if not found:
        return []
    last = found[-1]
    gained = [f for f in found if f.learned < f.nearest]
    share = sum(1 - f.learned / f.nearest for f in gained) / len(gained) if gained else 0.0
    lines = [f"{len(gained)} of {len(found)} segments, {share:.0%} less noise on average; {last.name}: "]
    lines[0] += f"{last.nearest:.3g} to {min(last.learned, last.nearest):.3g} of the signal"
    if rest := [f.name for f in found if not f.learned < f.nearest]:
        lines.append(f"rounded to nearest, because learning gained nothing: {', '.join(rest[:SHOWN])}")
        lines[1] += f" and {len(rest) - SHOWN} more" if len(rest) > SHOWN else ""
    return [("reconstructed", lines)]


def ranges(chosen: Sequence[RangeChoice], joint: JointRangesRecord | None) -> list[Row]:
    """What observers chose, and what the joint search gained."""
    found: list[Row] = [("ranges chosen", _list([f"{r.tensor}: {r.reason}" for r in chosen], ""))] if chosen else []
    if joint is None:
        return found
    text = f"{_LOSSES[joint.loss]} {joint.before:.3g} to {joint.after:.3g} in {joint.evaluations} evaluations"
    text += f" on {joint.samples} samples" + ("" if joint.after < joint.before else ": nothing gained, none moved")
    return [*found, ("joint ranges", text)]


def faster(found: FasterRecord | None) -> list[Row]:
    """Which kinds of layers are faster in float, and the whole network against float."""
    if found is None:
        return []
    lines: list[Cell] = [
        f"{k.kind} in float: {k.quantized_ms:.2f} ms before, {k.float_ms:.2f} ms then, "
        + ("left in float" if k.undone else "stays quantized")
        for k in found.kinds
    ]
    ratio = found.float_ms / found.quantized_ms
    text = f"{found.float_ms:.2f} ms in float, {found.quantized_ms:.2f} ms as it is: {numbers.ratio(ratio)} the speed"
    lines.append(Text(text if ratio >= 1 else f"{text}. On {found.engine} the float file is faster", style="none"))
    return [("faster", lines)]


def promise(found: PromiseRecord | None) -> list[Row]:
    """Whether it was kept, and each step with what it cost and gave."""
    if found is None:
        return []
    word, style = ("kept", "green") if found.kept else ("not kept", "red")
    lines: list[Cell] = [Text(f"{word}: {found.drop:.2f} lost, {found.max_drop:g} allowed", style=style)]
    for step in found.steps:
        result = f"not possible: {step.note}" if step.metric is None else f"{step.metric:.2f}"
        gained = "" if step.better or step.metric is None else ", no gain"
        lines.append(f"{step.name}: {result}{gained} ({numbers.duration(step.seconds)})")
    if not found.kept:
        lines.append("the file holds the best found. Allow more, give more calibration data, or train (isobit train)")
    return [("promise", lines)]


def accuracies(found: Sequence[Accuracy], data: str) -> list[Row]:
    """One line for each execution, and what it was measured on."""
    if not found:
        return [("accuracy", f"not measured: {data} have no labels")]
    width = max(len(a.execution) for a in found)
    lines = []
    for row in accuracy_rows(found):
        difference = "" if row.difference is None else f"  {numbers.points(row.difference)} points"
        lines.append(
            f"{row.execution:{width}}  {numbers.percent(row.share):>8}  {row.right:,}/{row.total:,}{difference}"
        )
    return [("accuracy", lines), ("", f"measured on {data}")]


def size(before: int, after: int) -> str:
    """`1.09 MB of float weights → 310 kB, 3.52× smaller`."""
    ratio = before / after
    change = f"{numbers.ratio(ratio)} smaller" if ratio >= 1 else f"{numbers.ratio(1 / ratio)} larger"
    return f"{_bytes(before)} of float weights → {_bytes(after)} file, {change}"


def _bytes(count: int) -> str:
    return numbers.short(count, base_unit="B")


def float_ops(found: Sequence[FloatOp]) -> list[str] | str:
    """Ops that the placement leaves in float, and why."""
    return _list([f"{f.name} ({f.op}): {f.reason}" for f in found], "none")


def _list(items: list[str], nothing: str) -> list[str] | str:
    if not items:
        return nothing
    more = [f"… and {len(items) - SHOWN} more"] if len(items) > SHOWN else []
    return items[:SHOWN] + more
