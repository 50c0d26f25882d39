"""What `isobit analyze` does with an ONNX file, and how that is shown: no engine runs."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx
from rich.table import Table

from isobit.analysis.referee import check_judgeable, judge, planned_islands
from isobit.analysis.referee_litert import counted, judge_litert
from isobit.cli.output import facts
from isobit.core.arithmetic import FLOAT32_VNNI, LITERT
from isobit.core.errors import SettingError
from isobit.core.litert_file import is_litert
from isobit.core.onnx_file import read_onnx
from isobit.core.records import Finding, FloatOp, RunRecord, to_json
from isobit.core.risks import OverflowRisk, overflow_lines
from isobit.engines.base import COMPUTES
from isobit.export.from_encodings import with_encodings
from isobit.graph.from_onnx import is_quantized
from isobit.integer import accumulating, overflow_risks
from isobit.integer.files import load_qdq
from isobit.report import check_report, write_report

_RULES = FLOAT32_VNNI
"""ONNX Runtime on x86: what becomes one integer kernel there does so on most engines."""

READ_AS = "ONNX Runtime on x86"


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """What a file says of itself: how many ops of each kind compute with integers, and all that stands against it."""

    file: Path
    integer: Mapping[str, int]
    floating: Mapping[str, int]
    findings: tuple[Finding, ...]
    accumulators: int
    risks: tuple[OverflowRisk, ...]
    older_risks: tuple[OverflowRisk, ...]
    rules: str = READ_AS


def is_for(path: Path, data: str | None, encodings: Path | None = None) -> bool:
    """Whether a file is to be judged: it is quantized, or has encodings. A float ONNX file is a network, which needs
    data."""
    if is_litert(path) or encodings is not None:
        return True
    quantized = is_quantized(read_onnx(path))
    if not quantized and data is None:
        raise SettingError(
            f"{path} is a float network, nothing in it is quantized: say what to calibrate on (--data DATA) and for "
            "which target. See `isobit analyze --help`"
        )
    return quantized


def run(
    path: Path,
    given: Mapping[str, object],
    encodings: Path | None = None,
    report: Path | None = None,
    command: str = "",
) -> Judged:
    """Judge a file, and write a report where one is wanted. `given` are options that only a network has a use for."""
    if report is not None:
        check_report(report)
    if names := [name for name, value in given.items() if value not in (None, [], "")]:
        raise SettingError(f"{names[0]} is of use with a network, and {path} is a file: it is judged as it is")
    if is_litert(path) and encodings is None:
        judged = _litert(path)
        if report is not None:
            write_report(_record(judged, [], command), report)
        return judged
    file = load_qdq(path) if encodings is None else with_encodings(path, encodings)
    check_judgeable(file, path)
    islands = dict.fromkeys(planned_islands(file, _RULES))
    computing = [n for n in file.graph.node if n.op_type in COMPUTES - {"Relu", "Clip"}]
    found = Judged(
        file=path,
        integer=Counter(n.op_type for n in computing if n.name not in islands),
        floating=Counter(n.op_type for n in computing if n.name in islands),
        findings=judge(file, _RULES, engine="", islands=islands),
        accumulators=len(accumulating(file, _RULES)),
        risks=overflow_risks(file, _RULES),
        older_risks=tuple(r for r in overflow_risks(file, _RULES.before_vnni) if r.kind == "pair"),
    )
    if report is not None:
        write_report(_record(found, [n for n in computing if n.name in islands], command), report)
    return found


def _record(found: Judged, islands: Sequence[onnx.NodeProto], command: str) -> RunRecord:
    """What a report shows of a file that was not quantized here."""
    why = "its inputs or its result are not all integers, or a constant is in float"
    return RunRecord(
        title="A file that others made, judged as it is", network=found.file.name, target=found.rules,
        target_source="the rules measured on that engine; no engine was run", recipe={}, seed=0, layers=(),
        versions={name: version(name) for name in ("isobit", "onnx")},
        float_ops=tuple(FloatOp(name=n.name, op=n.op_type, reason=why) for n in islands),
        findings=found.findings, warnings=tuple(str(r) for r in found.risks if r.kind == "accumulator"),
        quantized_bytes=found.file.stat().st_size, command=command,
    )  # fmt: skip


def _litert(path: Path) -> Judged:
    file = load_qdq(path)
    integer, floating = counted(path)
    return Judged(
        file=path,
        integer=integer,
        floating=floating,
        findings=judge_litert(path),
        accumulators=len(accumulating(file, LITERT)),
        risks=overflow_risks(file, LITERT),
        older_risks=(),
        rules="LiteRT, which computes each op in the type of its tensors",
    )


def table(found: Judged, report: Path | None = None) -> Table:
    """The file as names and values."""
    return facts(
        [
            ("file", str(found.file)),
            ("by the rules of", f"{found.rules}; `isobit verify` runs the file on an engine"),
            ("in integers", _counts(found.integer)),
            ("in float", _counts(found.floating)),
            *overflow_lines(found.risks, found.older_risks, found.accumulators),
            ("findings", [str(x) for x in found.findings] or "none"),
            *([] if report is None else [("written", str(report))]),
        ]
    )


def as_json(found: Judged) -> dict[str, Any]:
    """The result for programs."""
    return {
        "file": str(found.file), "integer": dict(found.integer), "float": dict(found.floating),
        "findings": [to_json(x) for x in found.findings], "risks": [to_json(x) for x in found.risks],
        "older_risks": [to_json(x) for x in found.older_risks], "accumulators": found.accumulators,
    }  # fmt: skip


def _counts(ops: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {op}" for op, n in sorted(ops.items(), key=lambda item: (-item[1], item[0]))) or "none"
