"""Artefacts: a file that was written, and what identifies it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from isobit.core.files import sha256_of_file


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


def own_metadata(
    given: Mapping[str, str] | None, *, target: str, integers_sha256: str, format: str | None = None
) -> dict[str, str]:
    """What is stored in a file: what is `given`, then isobit's own; `format` where it is not the usual one."""
    stated = {"isobit.format": format} if format else {}
    return {
        **(given or {}), "isobit.version": version("isobit"), "isobit.target": target, **stated,
        "isobit.integers_sha256": integers_sha256,
    }  # fmt: skip


def artifact_of(
    path: Path, *, format: str, metadata: dict[str, str], beside: Sequence[Path] = (), notes: Sequence[str] = ()
) -> Artifact:
    """The record of a file that was written with `metadata`, which names its target and its integers."""
    return Artifact(
        path=path, format=format, target=metadata["isobit.target"], sha256=sha256_of_file(path),
        integers_sha256=metadata["isobit.integers_sha256"], metadata=metadata, beside=tuple(beside), notes=tuple(notes),
    )  # fmt: skip
