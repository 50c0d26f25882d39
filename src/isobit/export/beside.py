"""A float network as ONNX with files of encodings beside it: written together, and known to belong together."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from isobit.core.artifact import Artifact, artifact_of
from isobit.core.errors import ArtifactError, SettingError
from isobit.core.files import atomic_path, check_writable
from isobit.export.opset import at_opset

BESIDE = "isobit.beside"
"""The key of the file's metadata that holds the names of the other files, and their SHA-256."""


def check_places(path: Path, suffixes: Sequence[str], *, instead: str = ".onnx") -> None:
    """Raise OutputError or SettingError where these files could not be written; `instead` is the network's suffix."""
    check_writable(path)
    for suffix in suffixes:
        if path.suffix == suffix:
            raise SettingError(
                f"{path.name} would be the network and its {suffix} file at once: give another name, such as "
                f"{path.with_suffix(instead).name}"
            )
        check_writable(path.with_suffix(suffix))


def write_beside(
    program: ir.Model,
    path: Path,
    files: Mapping[str, str],
    *,
    format: str,
    opset: int | None,
    metadata: dict[str, str],
    notes: Sequence[str] = (),
) -> Artifact:
    """Write the network and `files`, texts by suffix; all of them appear or none.

    `metadata` holds isobit's own; the names of the files are added to it. `opset` is what the vendor's tool reads; a
    network with ops that it does not have keeps its own, and a note says so.
    """
    contents = {path.with_suffix(suffix): text.encode() for suffix, text in files.items()}
    hashes = {place.name: hashlib.sha256(content).hexdigest() for place, content in contents.items()}
    held = {**metadata, BESIDE: json.dumps(hashes, sort_keys=True)}
    program, lowered = at_opset(program, opset)
    program.metadata_props.update(held)
    with ExitStack() as stack:
        temporary = stack.enter_context(atomic_path(path))
        for place, content in contents.items():
            stack.enter_context(atomic_path(place)).write_bytes(content)
        ir.save(program, temporary)
    return artifact_of(path, format=format, metadata=held, beside=tuple(contents), notes=(*notes, *lowered))


def read_beside(path: str | Path, *, format: str) -> tuple[ir.Model, dict[str, str]]:
    """The network, and the texts of the files beside it by suffix.

    Raises ArtifactError where one is missing or changed, or where this is another format's file.
    """
    path = Path(path)
    try:
        proto = onnx.load(path)
        onnx.checker.check_model(proto)
    except (DecodeError, onnx.checker.ValidationError, OSError) as error:
        raise ArtifactError(f"{path} is missing, truncated, or not an ONNX file. Export it again") from error
    held = {entry.key: entry.value for entry in proto.metadata_props}
    if held.get("isobit.format") != format or BESIDE not in held:
        raise ArtifactError(f"{path} was not written by isobit's exporter {format}: it is {_kind(held)}")
    texts = {}
    for name, sha256 in json.loads(held[BESIDE]).items():
        place = path.with_name(Path(name).name)
        if place.name != name or not place.is_file():
            raise ArtifactError(f"{path} needs {name} beside it, which is not there: export both again")
        content = place.read_bytes()
        if hashlib.sha256(content).hexdigest() != sha256:
            raise ArtifactError(f"{place} is not the one that was written with {path.name}: export both again")
        texts[place.suffix] = content.decode()
    return ir.from_proto(proto), texts


def _kind(metadata: Mapping[str, str]) -> str:
    found = metadata.get("isobit.format", "onnx" if "isobit.version" in metadata else "")
    return f"a file of the format {found}" if found else "a foreign file"


def to_text(value: object) -> str:
    """JSON, in the order of the network."""
    return json.dumps(value, indent=1, allow_nan=False) + "\n"


def parsed(path: str | Path, text: str) -> Any:
    """JSON read; raises ArtifactError."""
    try:
        return json.loads(text)
    except ValueError as error:
        raise ArtifactError(f"what stands beside {path} is no JSON: {error}. Export it again") from error
