"""PT2 archives: read as PyTorch wrote them; damaged and hostile ones are refused, and nothing in them is run."""

import contextlib
import io
import json
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from isobit.core.errors import ArtifactError, UnsupportedError
from isobit.core.pt2_file import Input, Ref, is_pt2, read_pt2
from pt2 import MODEL, SAMPLES, WEIGHTS, archive_of, changed, records


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.register_buffer("offset", torch.arange(4.0).reshape(4, 1, 1))
        self.register_buffer("turned", torch.arange(12.0).reshape(4, 3).T)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = torch.relu(self.conv(x) + self.offset)
        return y.mean((2, 3)) @ self.turned.T


@pytest.fixture(scope="module")
def archive() -> bytes:
    """What PyTorch writes, example inputs included."""
    batch = torch.export.Dim.DYNAMIC
    program = torch.export.export(Small(), (torch.randn(2, 3, 8, 8),), dynamic_shapes=({0: batch},))
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch about the transposed buffer
        torch.export.save(program, buffer)
    return buffer.getvalue()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "net.pt2"


def test_what_pytorch_wrote(archive: bytes, path: Path) -> None:
    path.write_bytes(archive)
    assert is_pt2(path) and not is_pt2("net.onnx")
    program = read_pt2(path)
    assert [(i.name, i.dtype, i.sizes) for i in program.inputs] == [("x", torch.float32, (None, 3, 8, 8))]
    assert isinstance(program.inputs[0], Input)
    expected = torch.export.load(path)
    assert {program.names[k]: v for k, v in program.constants.items()}.keys() == expected.state_dict.keys()
    for name, tensor in program.constants.items():
        assert torch.equal(tensor, expected.state_dict[program.names[name]])
    nodes = [n for n in expected.graph.nodes if n.op == "call_function"]
    assert [c.results[0] for c in program.calls] == [n.name for n in nodes]
    assert [c.target for c in program.calls] == [str(n.target) for n in nodes]
    assert program.calls[0].arguments["padding"] == [1, 1]
    assert program.calls[1].arguments["self"] == Ref("conv2d")
    assert program.outputs == (nodes[-1].name,)
    assert program.shapes["conv2d"] == (None, 4, 8, 8)
    assert program.metadata == {}


def test_damaged_files(archive: bytes, path: Path) -> None:
    with pytest.raises(ArtifactError, match="there is no file"):
        read_pt2(path)
    for content in (b"", b"PK\x03\x04", b"no archive", archive[: len(archive) // 2], archive[:-30]):
        path.write_bytes(content)
        with pytest.raises(ArtifactError, match=r"truncated|damaged"):
            read_pt2(path)


@pytest.mark.parametrize("record", [MODEL, WEIGHTS, "archive_format", "data/weights/weight_0"])
def test_missing_records(record: str, archive: bytes, path: Path) -> None:
    path.write_bytes(archive_of({k: v for k, v in records(archive).items() if k != record}))
    with pytest.raises(ArtifactError, match=r"lacks the record|no PT2 archive"):
        read_pt2(path)


def node(content: dict[str, Any], place: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = content["graph_module"]["graph"]["nodes"][place]
    return found


def lies(content: dict[str, Any], size: int, stride: int) -> None:
    meta = content["config"]["conv.weight"]["tensor_meta"]
    meta.update(sizes=[{"as_int": size}], strides=[{"as_int": stride}])


HOSTILE: dict[str, tuple[str, Callable[[dict[str, Any]], object], str]] = {
    "a version of the future": (MODEL, lambda c: c["schema_version"].update(major=9), "version 9"),
    "a name that nothing gives": (
        MODEL, lambda c: node(c)["inputs"][0]["arg"]["as_tensor"].update(name="y"), "nothing gives",
    ),
    "a result twice": (
        MODEL, lambda c: node(c, 1)["outputs"][0]["as_tensor"].update(name="conv2d"), "is there already",
    ),
    "an argument of another kind": (
        MODEL, lambda c: node(c)["inputs"][0].update(arg={"as_graph": {"name": "g"}}), "of the kind graph",
    ),
    "no outputs": (MODEL, lambda c: c["graph_module"]["signature"].update(output_specs=[]), "no outputs"),
    "an unknown type": (
        MODEL, lambda c: c["graph_module"]["graph"]["tensor_values"]["x"].update(dtype=77), "type 77",
    ),
    "no graph": (MODEL, lambda c: c.update(graph_module=None), "damaged"),
    "a pickled weight": (WEIGHTS, lambda c: c["config"]["conv.weight"].update(use_pickle=True), "is pickled"),
    "a weight outside": (
        WEIGHTS, lambda c: c["config"]["conv.weight"].update(path_name="../../../etc/passwd"), "no record's name",
    ),
    "a size that lies": (
        WEIGHTS,
        lambda c: lies(c, 1 << 40, 1),
        "needs .* bytes",
    ),
    "a tensor as large as it likes": (
        WEIGHTS,
        lambda c: lies(c, 1 << 40, 0),
        "more elements than the file holds",
    ),
    "a negative stride": (
        WEIGHTS,
        lambda c: lies(c, 2, -1),
        "do not fit",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files(name: str, archive: bytes, path: Path) -> None:
    record, change, text = HOSTILE[name]
    path.write_bytes(changed(archive, change, record=record))
    with pytest.raises((ArtifactError, UnsupportedError), match=text):
        read_pt2(path)


class Runs:
    """What unpickling calls."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def with_a_program(archive: bytes, place: str, mark: Path) -> bytes:
    """The archive with something that runs, and leaves a mark, in one of three places."""
    found, code = records(archive), f"__import__('pathlib').Path({str(mark)!r}).touch()"
    content = json.loads(found[MODEL])
    match place:
        case "example inputs":
            found[SAMPLES] = pickle.dumps(Runs(mark))
        case "size":
            content["graph_module"]["graph"]["tensor_values"]["x"]["sizes"][0]["as_expr"]["expr_str"] = code
        case "guard":
            content["guards_code"] = [f"{code} or True"]
    return archive_of({**found, MODEL: json.dumps(content).encode()})


@pytest.mark.parametrize("place", ["example inputs", "size", "guard"])
def test_nothing_in_a_file_is_run(place: str, archive: bytes, path: Path, tmp_path: Path) -> None:
    """PyTorch's own loader runs what stands there."""
    mark = tmp_path / "was here"
    path.write_bytes(with_a_program(archive, place, mark))
    assert read_pt2(path).inputs[0].sizes == (None, 3, 8, 8)
    assert not mark.exists()
    with warnings.catch_warnings(), contextlib.suppress(Exception):
        warnings.simplefilter("ignore")
        torch.export.load(path).module()(torch.randn(2, 3, 8, 8))
    assert mark.exists(), "PyTorch has become safe: say so in docs/pt2e.md"


def test_other_archives(archive: bytes, path: Path) -> None:
    path.write_bytes(archive_of(records(archive), compression=zipfile.ZIP_DEFLATED))
    with pytest.raises(ArtifactError, match="compressed"):
        read_pt2(path)
    path.write_bytes(archive_of({**records(archive), "byteorder": b"big"}))
    with pytest.raises(ArtifactError, match="order of bytes"):
        read_pt2(path)
    path.write_bytes(archive_of({**records(archive), "extra/isobit.json": b'{"a": 1}'}))
    with pytest.raises(ArtifactError, match="metadata"):
        read_pt2(path)


def test_two_hundred_files_with_changed_bytes(archive: bytes, path: Path) -> None:
    """Each is read, or refused with a text of isobit's."""
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(200):
        content = bytearray(archive)
        for place in rng.integers(0, len(content), 8):
            content[place] = rng.integers(0, 256)
        path.write_bytes(content)
        try:
            read_pt2(path)
        except (ArtifactError, UnsupportedError) as error:
            refused += 1
            assert str(error)
    assert refused > 100
