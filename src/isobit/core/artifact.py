"""Artefacts: a file that was written, and what identifies it."""

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """An exported file. `metadata` is also stored inside it, under the keys isobit.*.

    `beside` are files that belong to it, whose hashes it holds; `notes` what the format does not keep.
    """

    path: Path
    format: str
    target: str
    sha256: str
    integers_sha256: str
    metadata: dict[str, str] = field(default_factory=dict)
    beside: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()
