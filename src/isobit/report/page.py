"""Renders run records into one HTML file that needs no network, and writes it."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from isobit.core.errors import MissingExtraError, SettingError
from isobit.core.files import check_writable, write_text
from isobit.core.records import LayerRecord, RunRecord
from isobit.core.risks import NO_ACCUMULATORS
from isobit.report import numbers, summary
from isobit.report.island import island

_HERE = Path(__file__).parent


def write_report(records: Sequence[RunRecord] | RunRecord, path: str | Path) -> Path:
    """Write one offline HTML page about a run, or about several to compare, and return its path.

    The page holds everything it shows: no font, script or picture is fetched. Raises SettingError where there is
    no run, MissingExtraError where Jinja2 is not installed, and OutputError where `path` cannot be written.
    """
    runs = (records,) if isinstance(records, RunRecord) else tuple(records)
    if not runs:
        raise SettingError("write_report got no run record. Give it at least one")
    path = Path(path)
    check_report(path)
    write_text(path, render(runs))
    return path


def check_report(path: str | Path) -> None:
    """Raise now, before long work, what `write_report` would raise after it: MissingExtraError or OutputError."""
    _jinja2()
    check_writable(path)


def _jinja2() -> Any:
    try:
        import jinja2
    except ImportError as error:
        raise MissingExtraError("jinja2", "report") from error
    return jinja2


def render(records: Sequence[RunRecord]) -> str:
    """The page as text."""
    jinja2 = _jinja2()
    from markupsafe import Markup  # a part of jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "count": numbers.count,
        "short": numbers.short,
        "percent": numbers.percent,
        "points": numbers.points,
        "ratio": numbers.ratio,
        "number": numbers.number,
        "fixed": numbers.fixed,
        "ms": numbers.milliseconds,
        "duration": numbers.duration,
        "indented": _indented,
    }
    template = environment.get_template("page.html.j2")
    page: str = template.render(
        runs=records,
        facts=summary,
        no_accumulators=NO_ACCUMULATORS,
        bars=_bars,
        style=Markup(_read("style.css")),
        scripts=[Markup(_read(name)) for name in ("chart.js", "histogram.js", "layers.js", "page.js")],
        island=Markup(island(records)),
    )
    return page


def _read(name: str) -> str:
    return (_HERE / "templates" / name).read_text(encoding="utf-8")


def _indented(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, default=str)


def _bars(layers: Sequence[LayerRecord]) -> list[dict[str, float]]:
    """For each layer the lengths of its bars in percent of the largest; cosine is drawn as log10 of 1 / (1 − cos)."""
    columns = {
        "sqnr": [layer.sqnr_db for layer in layers],
        "cosine": [_nines(layer.cosine) for layer in layers],
        "isolated": [layer.isolated_db for layer in layers],
        "sensitivity": [layer.sensitivity for layer in layers],
    }
    lengths = {name: _lengths(values) for name, values in columns.items()}
    return [{name: values[i] for name, values in lengths.items()} for i in range(len(layers))]


def _nines(cosine: float | None) -> float | None:
    return None if cosine is None or math.isnan(cosine) else -math.log10(max(1 - cosine, 1e-9))


def _lengths(values: Sequence[float | None]) -> list[float]:
    largest = max((v for v in values if v is not None and math.isfinite(v)), default=0.0)
    return [_length(v, largest) for v in values]


def _length(value: float | None, largest: float) -> float:
    if value is None or math.isnan(value) or value <= 0:
        return 0.0
    return 100.0 if value >= largest else round(100 * value / largest, 1)
