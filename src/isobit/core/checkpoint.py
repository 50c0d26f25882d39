"""Checkpoints: nested plain values and tensors in one safetensors file, the structure as JSON in its header.

Nothing is pickled, so that loading a file runs no code. What is loaded is what was saved: tuples stay tuples, keys keep
their type, tensors their bits.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from isobit.core.errors import ArtifactError, IsobitError
from isobit.core.files import atomic_path

FORMAT = "isobit.checkpoint.1"


def save_checkpoint(path: str | Path, value: Any) -> None:
    """Write `value`: dicts, lists, tuples, tensors, texts, numbers, None. Whole or not at all.

    Raises IsobitError for a value of another type, with its place, and OutputError where `path` cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    structure = json.dumps(_taken_apart(value, "", tensors))
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"format": FORMAT, "structure": structure})


def load_checkpoint(path: str | Path) -> Any:
    """Read what `save_checkpoint` wrote. Raises ArtifactError for a file that is missing, truncated or foreign."""
    path = Path(path)
    if not path.is_file():
        raise ArtifactError(f"there is no checkpoint {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise ArtifactError(f"{path} is no checkpoint of this isobit: its header does not say {FORMAT}")
            return _put_together(json.loads(metadata["structure"]), file)
    except (SafetensorError, OSError, ValueError) as error:
        raise ArtifactError(f"{path} is truncated, or no checkpoint: {error}") from error


def _taken_apart(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    """JSON: plain values as they are; [kind, content] for everything that holds others."""
    match value:
        case None | bool() | int() | float() | str():
            return value
        case Tensor():
            key = f"{len(tensors)}{place}"
            tensors[key] = value.detach().clone(memory_format=torch.contiguous_format)
            return ["tensor", key]
        case dict():
            pairs = [[key, _taken_apart(v, f"{place}/{key}", tensors)] for key, v in value.items()]
            return ["dict", pairs]
        case list() | tuple():
            kind = "list" if isinstance(value, list) else "tuple"
            return [kind, [_taken_apart(v, f"{place}/{i}", tensors) for i, v in enumerate(value)]]
        case _:
            raise IsobitError(f"a checkpoint cannot hold a {type(value).__name__}, and {place or 'the value'} is one")


def _put_together(value: Any, file: Any) -> Any:
    match value:
        case ["tensor", key]:
            found: Tensor = file.get_tensor(key)
            return found
        case ["dict", pairs]:
            return {key: _put_together(v, file) for key, v in pairs}
        case ["list", items]:
            return [_put_together(v, file) for v in items]
        case ["tuple", items]:
            return tuple(_put_together(v, file) for v in items)
        case _:
            return value
