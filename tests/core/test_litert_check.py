"""Damaged and hostile LiteRT files: each is refused by name before LiteRT sees it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from integer.graphs import small_network
from isobit.core.errors import ArtifactError, EngineError
from isobit.core.litert_check import check_litert
from isobit.core.litert_file import metadata_of, missing, read_litert, serialized
from isobit.engines import LiteRt
from isobit.export.litert import translate
from isobit.integer.litert import qdq_of_litert

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing() or "installed")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    source = onnx.load(small_network().save(tmp_path / "net.onnx"))
    path = tmp_path / "net.tflite"
    path.write_bytes(serialized(translate(source, {"isobit.target": "litert"})))
    return path


def test_a_file_comes_back_as_it_was_written(path: Path) -> None:
    model = read_litert(path)
    check_litert(model)
    assert serialized(model) == serialized(read_litert(path))
    assert json.loads(metadata_of(model) or b"")["isobit.target"] == "litert"


def first(model: Any, kind: str) -> Any:
    return next(o for o in model.subgraphs[0].operators if type(o.builtinOptions).__name__ == f"{kind}OptionsT")


def tensor(model: Any, place: int = 1) -> Any:
    """A tensor that an op of the file writes, or the first constant for -1."""
    tensors = model.subgraphs[0].tensors
    return next(t for t in tensors if t.buffer) if place < 0 else tensors[place]


def set_options(kind: str, **values: int) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        for key, value in values.items():
            setattr(first(model, kind).builtinOptions, key, value)

    return change


def swap_options(model: Any) -> None:
    conv, add = first(model, "Conv2D"), first(model, "Add")
    conv.builtinOptions, conv.builtinOptionsType = add.builtinOptions, add.builtinOptionsType


def change_tensor(place: int, **values: Any) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        for key, value in values.items():
            setattr(tensor(model, place), key, value)

    return change


def change_scale(**values: Any) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        for key, value in values.items():
            setattr(tensor(model).quantization, key, value)

    return change


def backwards(model: Any) -> None:
    model.subgraphs[0].operators.reverse()


def reads(index: int) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        first(model, "Add").inputs = [index, 1]

    return change


def outside(model: Any) -> None:
    model.buffers[tensor(model, -1).buffer].offset = 1 << 20


HOSTILE: dict[str, tuple[Callable[[Any], None], str]] = {
    "stride": (set_options("Conv2D", strideH=0), "strideH is 0"),
    "dilation": (set_options("Conv2D", dilationWFactor=1 << 30), "dilationWFactor is"),
    "options of another op": (swap_options, "has the options of another op"),
    "shape that lies": (change_tensor(-1, shape=[1 << 20, 1 << 20]), "is not possible"),
    "shape that does not fit its data": (change_tensor(-1, shape=[3]), "bytes do not fill the shape"),
    "negative shape": (change_tensor(1, shape=[-4, 2]), "is not possible"),
    "buffer": (change_tensor(1, buffer=999), "a buffer that does not exist"),
    "data outside": (outside, "data outside the flatbuffer"),
    "type": (change_tensor(1, type=8), "type 8 has no rule"),
    "scale of 0": (change_scale(scale=np.zeros(1, np.float32)), "has to be a positive number, got 0"),
    "scale that is no number": (change_scale(scale=np.full(1, np.nan, np.float32)), "has to be a positive number"),
    "no scale": (change_scale(scale=np.zeros(0, np.float32)), "bytes without a scale"),
    "zero points": (change_scale(zeroPoint=np.zeros(3, np.int64)), "1 scales and 3 zero points"),
    "tensor that does not exist": (reads(4096), "reads a tensor 4096 that does not exist"),
    "missing input": (reads(-1), "reads a tensor -1"),
    "order": (backwards, "before it is written"),
}


def test_data_behind_the_flatbuffer_are_read(path: Path) -> None:
    """As ai-edge-quantizer writes large models: a buffer says where in the file its data lie."""
    model = read_litert(path)
    buffer = model.buffers[tensor(model, -1).buffer]
    kept = np.asarray(buffer.data, np.uint8).tobytes()
    buffer.data, buffer.offset, buffer.size = None, 1 << 20, len(kept)
    head = serialized(model)
    path.write_bytes(head + bytes((1 << 20) - len(head)) + kept)
    found = read_litert(path)
    found_buffer = found.buffers[tensor(found, -1).buffer]
    assert np.asarray(found_buffer.data, np.uint8).tobytes() == kept
    check_litert(found)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match="data outside the flatbuffer that it does not hold"):
        read_litert(path)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused(name: str, path: Path) -> None:
    change, message = HOSTILE[name]
    model = read_litert(path)
    change(model)
    path.write_bytes(serialized(model))
    with pytest.raises(ArtifactError, match=message):
        qdq_of_litert(path)
    with pytest.raises(EngineError, match=message):
        LiteRt().load(path)


def test_truncated_and_changed_bytes(path: Path) -> None:
    """Whatever is wrong with the bytes is an error with a text; some changes leave a valid file."""
    whole = path.read_bytes()
    r = np.random.default_rng(0)
    refused = 0
    for seed in range(60):
        data = bytearray(whole[: int(r.integers(1, len(whole)))] if seed % 2 else whole)
        for place in r.integers(0, min(len(data), 2000), 3):
            data[int(place)] = int(r.integers(0, 256))
        path.write_bytes(bytes(data))
        try:
            qdq_of_litert(path)
        except ArtifactError:
            refused += 1
    assert refused >= 30
