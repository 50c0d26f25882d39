"""Checkpoints: what comes out is what went in, and foreign files are refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from isobit.core.checkpoint import load_checkpoint, save_checkpoint
from isobit.core.errors import ArtifactError, IsobitError

VALUE: dict[Any, Any] = {
    "state": {0: {"momentum": torch.randn(3, 2)}, 1: {"momentum": None}},
    "numbers": (1, 2.5, True, float("inf")),
    "list": [[], {}, "text", torch.tensor(7), torch.tensor([1, 2], dtype=torch.int8)],
    "a/b": {"c": torch.ones(2, dtype=torch.bfloat16)},
}


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(equal(v, b[k]) for k, v in a.items())
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and bool(a == b)


def test_what_comes_out_is_what_went_in(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a.safetensors", VALUE)
    assert equal(load_checkpoint(tmp_path / "a.safetensors"), VALUE)


def test_two_tensors_of_one_memory_are_saved_apart(tmp_path: Path) -> None:
    x = torch.arange(4.0)
    save_checkpoint(tmp_path / "a", {"x": x, "view": x[1:3], "turned": x.reshape(2, 2).T})
    found = load_checkpoint(tmp_path / "a")
    assert equal(found, {"x": x, "view": x[1:3], "turned": x.reshape(2, 2).T})


def test_keys_that_read_alike_do_not_collide(tmp_path: Path) -> None:
    value = {"a": {"b": torch.zeros(1)}, "a/b": torch.ones(1)}
    save_checkpoint(tmp_path / "a", value)
    assert equal(load_checkpoint(tmp_path / "a"), value)


def test_other_types_are_refused_with_their_place(tmp_path: Path) -> None:
    with pytest.raises(IsobitError, match="cannot hold a set, and /x/1 is one"):
        save_checkpoint(tmp_path / "a", {"x": [1, {2}]})
    assert not list(tmp_path.iterdir())


def test_foreign_and_truncated_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with pytest.raises(ArtifactError, match="there is no checkpoint"):
        load_checkpoint(path)
    save_file({"x": torch.ones(2)}, path)
    with pytest.raises(ArtifactError, match="no checkpoint of this isobit"):
        load_checkpoint(path)
    save_checkpoint(path, VALUE)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ArtifactError, match="truncated"):
        load_checkpoint(path)
