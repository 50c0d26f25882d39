"""Measured times of layers in a file, so that no layer is measured twice on the same machine."""

import json
import os
import platform
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from isobit.core.errors import ArtifactError
from isobit.core.files import write_json

FORMAT = 1

_CPUINFO = Path("/proc/cpuinfo")


def default_cache() -> Path:
    """`latency.json` in the folder that the system has for caches, `XDG_CACHE_HOME` or `~/.cache`."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(home) / "isobit" / "latency.json"


def processor() -> str:
    """The processor's model: one cache may lie in a home that several machines share."""
    text = _CPUINFO.read_text(encoding="utf-8", errors="replace") if _CPUINFO.is_file() else ""
    match = re.search(r"^model name\s*:\s*(.*)$", text, re.MULTILINE)
    return match.group(1).strip() if match else platform.processor() or platform.machine()


@dataclass(frozen=True, kw_only=True, slots=True)
class Key:
    """What a time depends on. `layer` is the signature of the layer's own file, which its widths are part of."""

    engine: str
    version: str
    instruction_set: str
    processor: str
    clock: str
    threads: int
    batch: int
    bits: str
    layer: str

    def __str__(self) -> str:
        machine = f"{self.engine} | {self.version} | {self.instruction_set} | {self.processor}"
        return f"{machine} | {self.clock} | threads {self.threads} | batch {self.batch} | {self.bits} | {self.layer}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Held:
    """What is kept of a measurement: the median, of how many runs, the ops in float, and the layer in words."""

    ms: float
    runs: int
    in_float: tuple[str, ...]
    what: str


@dataclass(slots=True)
class LatencyCache:
    """The times in a file. Without a path, only as long as the process."""

    path: Path | None = None
    _held: dict[str, Held] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.path is not None:
            self._held = _read(self.path)

    def find(self, key: Key, *, runs: int) -> Held | None:
        """A time that was measured with at least as many runs."""
        found = self._held.get(str(key))
        return found if found is not None and found.runs >= runs else None

    def keep(self, found: dict[Key, Held]) -> None:
        """Add times and write the file, with what other processes wrote meanwhile. Raises OutputError."""
        self._held |= {str(key): held for key, held in found.items()}
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._held = _read(self.path) | self._held
        times = {
            key: {"ms": h.ms, "runs": h.runs, "in_float": list(h.in_float), "what": h.what}
            for key, h in self._held.items()
        }
        write_json(self.path, {"format": FORMAT, "times": times})


def _read(path: Path) -> dict[str, Held]:
    if not path.exists():
        return {}
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ArtifactError(
                f"{path} has format {content['format']}, this isobit reads {FORMAT}. Delete it, or name another file"
            )
        return {
            str(key): Held(
                ms=float(h["ms"]), runs=int(h["runs"]), in_float=tuple(map(str, h["in_float"])), what=str(h["what"])
            )
            for key, h in content["times"].items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise ArtifactError(
            f"{path} is no cache of latencies ({type(error).__name__}: {error}). Delete it, or name another file"
        ) from error
