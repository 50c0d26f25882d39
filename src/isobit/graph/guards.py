"""What a trace assumed about the batch size, and which line of the user's code made it do so."""

import traceback
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from isobit.graph.source import place_of_frame

_SIZES = (*range(2, 17), 24, 32, 50, 64, 100, 128, 256, 1000, 1024, 4096)


@dataclass(frozen=True, kw_only=True, slots=True)
class Limit:
    """The graph holds for batch sizes where `condition` does; `line` is the code that asked."""

    condition: str
    line: str
    equal: bool

    def __str__(self) -> str:
        return f"{self.condition}, asked for at {self.line}" if self.line else self.condition


def batch_limits(graph: fx.Graph) -> list[Limit]:
    """The guards of a trace that do not hold for every batch size from 2 to 4,096."""
    values = [n.meta.get("val") for n in graph.nodes if n.op == "placeholder"]
    tensors = [v for v in values if isinstance(v, Tensor)]
    mode: Any = next((m for v in tensors if (m := getattr(v, "fake_mode", None)) is not None), None)
    if mode is None or mode.shape_env is None:
        return []
    found = (_limit(guard) for guard in mode.shape_env.guards)
    return [limit for limit in found if limit is not None]


def _limit(guard: Any) -> Limit | None:
    symbols = guard.expr.free_symbols
    if not symbols or all(bool(guard.expr.subs(dict.fromkeys(symbols, n))) for n in _SIZES):
        return None
    place = guard.sloc.framework_loc
    line = place_of_frame(place.filename, place.lineno or 0) if isinstance(place, traceback.FrameSummary) else ""
    equal = type(guard.expr).__name__ == "Equality"
    text = f"{guard.expr.lhs} = {guard.expr.rhs}" if equal else str(guard.expr)
    for symbol in symbols:
        text = text.replace(str(symbol), "batch")
    return Limit(condition=text, line=line, equal=equal)
