"""What the engines for PT2 archives share, and the engines themselves where they are installed."""

import io
import json
import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from core.test_pt2_file import Runs
from integer.graphs import QdqGraph, small_network
from isobit.core.errors import EngineError
from isobit.core.pt2_file import read_pt2
from isobit.core.pt2_program import module_of
from isobit.engines import ENGINES, Inductor
from isobit.engines.executorch import EXECUTORCH, executorch, for_xnnpack
from isobit.engines.inductor import InductorSession
from isobit.engines.pt2 import check_inputs, example_of, read_program, with_sign
from isobit.export.pt2e import translate
from isobit.integer import quantized_tensors
from isobit.integer.files import load_qdq
from isobit.verify import verify
from pt2 import MODEL, SAMPLES, archive_of, records


def save(g: QdqGraph, path: Path) -> Path:
    path.with_suffix(".pt2").write_bytes(translate(onnx.load(g.save(path.with_suffix(".onnx"))), {}))
    return path.with_suffix(".pt2")


def padded(dtype: type, seed: int = 0) -> QdqGraph:
    """A convolution with more padding behind than before, a capped sum, and a pooling with ceil_mode."""
    g = QdqGraph(seed, dtype=dtype)
    x = g.qdq(g.input("batch", 3, 8, 8), scale=0.02, zero_point=5)
    w = g.constant("w", g.rng.integers(-127, 128, (4, 3, 3, 3)).astype(np.int8))
    scale, zero = g.constant("s", np.full(4, 0.01, np.float32)), g.constant("z", np.zeros(4, np.int8))
    weight = g.node("DequantizeLinear", [w, scale, zero], axis=0)
    y = g.qdq(
        g.node("Relu", [g.node("Conv", [x, weight], pads=[0, 0, 1, 1], strides=[2, 2])]), scale=0.05, zero_point=3
    )
    y = g.qdq(g.node("MaxPool", [y], kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1), scale=0.05, zero_point=3)
    g.output(g.qdq(g.node("Add", [y, y]), scale=0.1, zero_point=7))
    return g


def samples(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((3, 3, 8, 8)).astype(np.float32)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_bytes_of_the_other_sign_are_the_same_values(dtype: type, signed: bool, tmp_path: Path) -> None:
    program = read_program(save(padded(dtype), tmp_path / "net"))
    moved = with_sign(program, signed=signed)
    x = torch.from_numpy(samples())
    assert torch.equal(module_of(moved.program)(x), module_of(program)(x))
    kinds = {c.arguments["dtype"] for c in moved.program.calls if c.target.endswith("quantize_per_tensor.default")}
    assert kinds == {torch.int8 if signed else torch.uint8}
    by = {(np.int8, False): 128, (np.uint8, True): -128}.get((dtype, signed), 0)
    assert set(moved.raised.values()) == {by}
    names = list(moved.raised)
    for name, one, other in zip(
        names, module_of(program, outputs=names)(x), module_of(moved.program, outputs=names)(x), strict=True
    ):
        assert torch.equal(one.to(torch.int16) + by, other.to(torch.int16)), name


def test_inputs_are_checked(tmp_path: Path) -> None:
    program = read_program(save(small_network(), tmp_path / "net"))
    check_inputs(program, [np.zeros((1, 3, 16, 16), np.float32)])
    assert [x.shape for x in example_of(program)] == [(1, 3, 16, 16)]
    assert [x.shape for x in example_of(program, batch=4)] == [(4, 3, 16, 16)]
    with pytest.raises(EngineError, match="takes 1 inputs"):
        check_inputs(program, [])
    with pytest.raises(EngineError, match="batch × 3 × 16 × 16"):
        check_inputs(program, [np.zeros((3, 16, 16), np.float32)])
    with pytest.raises(EngineError, match="float32, got int64"):
        check_inputs(program, [np.zeros((1, 3, 16, 16), np.int64)])


def test_the_worker_gets_a_file_without_what_others_left_in_it(tmp_path: Path) -> None:
    """ExecuTorch loads with PyTorch's loader, which unpickles: it gets a program that isobit wrote anew."""
    path, mark = save(small_network(), tmp_path / "net"), tmp_path / "was here"
    found = {**records(path), SAMPLES: pickle.dumps(Runs(mark))}
    content = json.loads(found[MODEL])
    content["guards_code"] = [f"open({str(mark)!r}, 'w')"]
    path.write_bytes(archive_of({**found, MODEL: json.dumps(content).encode()}))
    name = quantized_tensors(load_qdq(path))[0]
    data = for_xnnpack(path, [name])
    rewritten = tmp_path / "rewritten.pt2"
    rewritten.write_bytes(data)
    assert records(data)[SAMPLES] == b""
    y, q = torch.export.load(io.BytesIO(data)).module()(torch.zeros(3, 3, 16, 16))
    assert q.dtype == torch.int8 and y.dtype == torch.float32
    program = read_pt2(rewritten)
    assert program.outputs[1] == name
    assert set(json.loads(program.metadata["raised"]).values()) == {-128}
    assert not mark.exists()
    with pytest.raises(EngineError, match="no tensor 'nothing' to expose"):
        for_xnnpack(path, ["nothing"])
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(EngineError, match="no PT2 archive"):
        for_xnnpack(path, [])


def test_what_executorch_needs() -> None:
    engine = executorch()
    assert engine == ENGINES["executorch"]()
    assert engine.rewrite is for_xnnpack
    assert (engine.format, engine.environment) == ("pt2e", EXECUTORCH)
    assert all("==" in requirement for requirement in EXECUTORCH.bare)


def test_the_compiler_has_to_be_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "install g++ or clang++" in Inductor().missing()
    with pytest.raises(EngineError, match="needs one of C"):
        Inductor().load(save(small_network(), tmp_path / "net"))


inductor = pytest.mark.skipif(bool(Inductor().missing()), reason=Inductor().missing() or "there")


class Pooled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.max_pool2d(x, 3, 2, ceil_mode=True)


@inductor
def test_inductor_refuses_what_it_would_compute_wrongly(tmp_path: Path) -> None:
    torch.export.save(torch.export.export(Pooled(), (torch.randn(2, 3, 8, 8),)), tmp_path / "net.pt2")
    with pytest.raises(EngineError, match="leaves the ceil_mode of max_pool2d out"):
        Inductor().load(tmp_path / "net.pt2")


@inductor
@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_inductor_is_exact(dtype: type, tmp_path: Path) -> None:
    """Signed bytes too, which its integer kernels do not take, and inner tensors as the file has them."""
    path = save(padded(dtype), tmp_path / "net")
    batch = [torch.from_numpy(samples(seed)) for seed in range(2)]
    certificate = verify(path, None, batch, engine=Inductor())
    assert (certificate.verdict, certificate.float_islands) == ("exact", ())
    names = quantized_tensors(load_qdq(path))
    found = Inductor().load(path, expose=names).run([samples()])
    expected = module_of(read_pt2(path), outputs=names)(torch.from_numpy(samples()))
    for name, one, other in zip(names, found[1:], expected, strict=True):
        assert one.dtype == dtype
        np.testing.assert_array_equal(one, other.numpy(), err_msg=name)


@inductor
def test_failures_inside_the_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = Inductor().load(save(small_network(), tmp_path / "net"))
    assert isinstance(session, InductorSession)

    def fails(_module: object, _inputs: Sequence[object], **_options: object) -> object:
        raise RuntimeError("no such luck\nand more")

    monkeypatch.setattr(torch._inductor, "compile", fails)
    with pytest.raises(EngineError, match=r"refuses .*net\.pt2: no such luck$"):
        session.run([np.zeros((1, 3, 16, 16), np.float32)])


@pytest.mark.skipif(bool(executorch().missing()), reason=executorch().missing() or "installed")
@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_executorch_is_exact(dtype: type, tmp_path: Path) -> None:
    path = save(padded(dtype), tmp_path / "net")
    certificate = verify(path, None, [torch.from_numpy(samples(seed)) for seed in range(2)], engine=executorch())
    assert (certificate.verdict, certificate.float_islands) == ("exact", ())
