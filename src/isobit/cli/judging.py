"""What `isobit analyze` does with an ONNX file, and how that is shown: no engine runs."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from isobit.analysis.referee import check_judgeable, judge, planned_islands
from isobit.analysis.referee_litert import counted, judge_litert
from isobit.cli.output import facts
from isobit.core.arithmetic import FLOAT32_VNNI, LITERT
from isobit.core.errors import SettingError
from isobit.core.litert_file import is_litert
from isobit.core.records import Finding, to_json
from isobit.core.risks import OverflowRisk, overflow_lines
from isobit.engines.base import COMPUTES
from isobit.export.from_encodings import with_encodings
from isobit.integer import overflow_risks
from isobit.integer.files import load_qdq

_RULES = FLOAT32_VNNI
"""ONNX Runtime on x86: what becomes one integer kernel there does so on most engines."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """What a file says of itself: how many ops of each kind compute with integers, and all that stands against it."""

    file: Path
    integer: Mapping[str, int]
    floating: Mapping[str, int]
    findings: tuple[Finding, ...]
    risks: tuple[OverflowRisk, ...]
    older_risks: tuple[OverflowRisk, ...]
    rules: str = "ONNX Runtime on x86"


def run(path: Path, given: Mapping[str, object], encodings: Path | None = None) -> Judged:
    """Judge a file. `given` are the options that only a network has a use for."""
    if names := [name for name, value in given.items() if value not in (None, [], "")]:
        raise SettingError(f"{names[0]} is of use with a network, and {path} is a file: it is judged as it is")
    if is_litert(path) and encodings is None:
        return _litert(path)
    file = load_qdq(path) if encodings is None else with_encodings(path, encodings)
    check_judgeable(file, path)
    islands = set(planned_islands(file, _RULES))
    computing = [n for n in file.graph.node if n.op_type in COMPUTES - {"Relu", "Clip"}]
    return Judged(
        file=path,
        integer=Counter(n.op_type for n in computing if n.name not in islands),
        floating=Counter(n.op_type for n in computing if n.name in islands),
        findings=judge(file, _RULES, engine="", islands=islands),
        risks=overflow_risks(file, _RULES),
        older_risks=tuple(r for r in overflow_risks(file, _RULES.before_vnni) if r.kind == "pair"),
    )


def _litert(path: Path) -> Judged:
    file = load_qdq(path)
    integer, floating = counted(path)
    return Judged(
        file=path,
        integer=integer,
        floating=floating,
        findings=judge_litert(path),
        risks=overflow_risks(file, LITERT),
        older_risks=(),
        rules="LiteRT, which computes each op in the type of its tensors",
    )


def table(found: Judged) -> Table:
    """The file as names and values."""
    return facts(
        [
            ("file", str(found.file)),
            ("by the rules of", f"{found.rules}; `isobit verify` runs the file on an engine"),
            ("in integers", _counts(found.integer)),
            ("in float", _counts(found.floating)),
            *overflow_lines(found.risks, found.older_risks),
            ("findings", [str(x) for x in found.findings] or "none"),
        ]
    )


def as_json(found: Judged) -> dict[str, Any]:
    """The result for programs."""
    return {
        "file": str(found.file), "integer": dict(found.integer), "float": dict(found.floating),
        "findings": [to_json(x) for x in found.findings], "risks": [to_json(x) for x in found.risks],
        "older_risks": [to_json(x) for x in found.older_risks],
    }  # fmt: skip


def _counts(ops: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {op}" for op, n in sorted(ops.items(), key=lambda item: (-item[1], item[0]))) or "none"
