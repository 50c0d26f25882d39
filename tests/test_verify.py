"""Verification against the fake engine and the real ones: exact where it should be, and wrong files found out."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, fx, nn

import isobit
from isobit.core.arithmetic import FLOAT32, Arithmetic
from isobit.core.errors import ArtifactError, CalibrationError, EngineError
from isobit.core.records import Certificate, from_json, to_json
from isobit.engines import ENGINES, Engine, Fake, OnnxRuntime
from isobit.integer.files import output_step, random_inputs, read_metadata
from isobit.verify import verify
from zoo import small_networks


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("verify")


@functools.cache
def exported(network: str, target: str, folder: Path) -> tuple[fx.GraphModule, Path, tuple[Tensor, ...]]:
    net, inputs = small_networks()[network]
    data = (torch.cat([torch.randn(64, *inputs[0].shape[1:], generator=torch.Generator().manual_seed(3)), inputs[0]]),)
    model = isobit.quantize(net, [(data,)], target=target)
    isobit.export(model, folder / f"{network}.{target}.onnx")
    return model, folder / f"{network}.{target}.onnx", data


def engine(name: str) -> Engine:
    found = ENGINES[name]()
    if found.missing():
        pytest.skip(found.missing())
    return found


@pytest.mark.parametrize("network", ["residual", "depthwise", "concat", "shared", "option_a"])
def test_exact_on_onnx_runtime(network: str, folder: Path) -> None:
    """Every output of convolutional networks, residual adds, concat, depthwise and pooling among them."""
    model, path, data = exported(network, "onnxruntime-x86", folder)
    certificate = verify(path, model, [data], engine=engine("onnxruntime"))
    assert (certificate.verdict, certificate.cause) == ("exact", "")
    (proof,) = [c for c in certificate.comparisons if (c.left, c.right) == ("reference", "onnxruntime")]
    assert proof.equal == proof.total == 66 * (3 if network == "shared" else 5)
    assert proof.unit == "steps"
    assert certificate.samples == 66
    assert any(k.name == "QLinearConv" for k in certificate.kernels)
    for comparison in certificate.comparisons:
        assert comparison.equal >= 0.9 * comparison.total
        assert comparison.largest <= 1


def test_power_of_two_scales_make_the_simulation_exact_too(folder: Path) -> None:
    model, path, data = exported("residual", "tvm", folder)
    certificate = verify(path, model, [data], engine=engine("onnxruntime"))
    assert [(c.left, c.right, c.equal == c.total) for c in certificate.comparisons if c.right == "reference"] == [
        ("simulation", "reference", True)
    ]


def test_the_fake_engine_is_a_float_simulation(folder: Path) -> None:
    model, path, data = exported("depthwise", "onnxruntime-x86", folder)
    certificate = verify(path, model, [data], engine=Fake())
    assert certificate.verdict in ("exact", "bounded")
    assert certificate.float_islands
    assert "float32" in certificate.instruction_set


def test_a_projected_shortcut_computed_first_on_openvino(folder: Path) -> None:
    """OpenVINO fuses the operand of the add that carries no quantizer, whichever is computed first."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.relu = nn.Conv2d(3, 8, 1), nn.ReLU()
            self.shortcut, self.conv = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1)
            self.act, self.last = nn.ReLU(), nn.Conv2d(8, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.relu(self.stem(x))
            short = self.shortcut(x)
            return self.last(self.act(self.conv(x) + short))

    runner = engine("openvino")
    torch.manual_seed(0)
    data = torch.randn(32, 3, 8, 8)
    model = isobit.quantize(Block().eval(), [data], target="openvino-cpu")
    isobit.export(model, folder / "block.onnx")
    certificate = verify(folder / "block.onnx", model, [data], engine=runner)
    assert certificate.verdict in ("exact", "bounded")
    assert certificate.float_islands == ()
    assert all(c.largest <= 0.01 for c in certificate.comparisons)  # the last layer is float: one step would show


def test_accuracy_is_counted_per_execution(folder: Path) -> None:
    model, path, (x,) = exported("residual", "onnxruntime-x86", folder)
    with torch.no_grad():
        labels = model(x).argmax(1)
    labels[:6] = (labels[:6] + 1) % 5  # six wrong ones
    certificate = verify(path, model, [(x[:40], labels[:40]), (x[40:], labels[40:])], engine=engine("onnxruntime"))
    assert {a.execution for a in certificate.accuracy} == {"simulation", "reference", "onnxruntime"}
    assert all(a.total == 66 for a in certificate.accuracy)
    assert next(a.right for a in certificate.accuracy if a.execution == "simulation") == 60
    assert from_json(Certificate, to_json(certificate)) == certificate
    assert str(certificate).startswith("EXACT: residual.onnxruntime-x86.onnx on onnxruntime")


def test_without_a_model_and_without_data(folder: Path) -> None:
    _, path, _ = exported("residual", "onnxruntime-x86", folder)
    certificate = verify(path, None, None, engine=engine("onnxruntime"))
    assert certificate.verdict == "exact"
    assert [(c.left, c.right) for c in certificate.comparisons] == [("reference", "onnxruntime")]
    assert certificate.samples == 32
    graph = onnx.load(path).graph
    scale = next(onnx.numpy_helper.to_array(t) for t in graph.initializer if t.name.endswith("slots_x.scale"))
    (first, *_) = random_inputs(onnx.load(path))
    assert first[0][0].abs().max() <= 256 * scale
    assert torch.equal(random_inputs(onnx.load(path))[0][0][0], first[0][0])


@dataclass(frozen=True)
class Twisted:
    """ONNX Runtime, but each output is changed by `change`."""

    change: Any
    inner: OnnxRuntime = field(default_factory=OnnxRuntime)
    name: str = "twisted"
    format: str = "onnx"
    arithmetic: Arithmetic = FLOAT32

    def missing(self) -> str:
        return self.inner.missing()

    def version(self) -> str:
        return self.inner.version()

    def instruction_set(self) -> str:
        return self.inner.instruction_set()

    def load(self, path: Path | str, *, expose: Sequence[str] = ()) -> Any:
        return TwistedSession(self.inner.load(path, expose=expose), self.change, exposed=bool(expose))


@dataclass(frozen=True)
class TwistedSession:
    inner: Any
    change: Any
    exposed: bool

    @property
    def outputs(self) -> tuple[str, ...]:
        return self.inner.outputs

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [self.change(y) for y in self.inner.run(inputs)]

    def kernels(self) -> Any:
        return self.inner.kernels()

    def float_islands(self) -> tuple[str, ...]:
        return self.inner.float_islands()


def test_an_engine_that_computes_something_else_is_broken(folder: Path) -> None:
    """Inner integers and outputs change by far more than a step: the verdict says so, and where it starts."""
    engine("onnxruntime")
    model, path, data = exported("residual", "onnxruntime-x86", folder)
    change = lambda y: np.roll(y, 1, axis=1) if y.ndim > 1 else y  # noqa: E731
    certificate = verify(path, model, [data], engine=Twisted(change))
    assert certificate.verdict == "broken"
    assert certificate.cause
    proof = next(c for c in certificate.comparisons if (c.left, c.right) == ("reference", "twisted"))
    assert proof.largest > 1
    assert proof.first is not None


def test_an_engine_that_rounds_one_value_otherwise_is_bounded(folder: Path) -> None:
    engine("onnxruntime")
    model, path, data = exported("residual", "onnxruntime-x86", folder)
    step = output_step(onnx.load(path))
    assert step is not None

    def change(y: np.ndarray) -> np.ndarray:
        y = y.copy()
        y.flat[0] += np.asarray(step if y.dtype == np.float32 else (1 if y.flat[0] < 255 else -1)).astype(y.dtype)
        return y

    certificate = verify(path, model, [data], engine=Twisted(change))
    assert certificate.verdict == "bounded"
    assert "differs first, by 1" in certificate.cause
    proof = next(c for c in certificate.comparisons if (c.left, c.right) == ("reference", "twisted"))
    assert (proof.total - proof.equal, proof.largest) == (1, 1)


def test_files_that_are_not_ours(folder: Path, tmp_path: Path) -> None:
    _, path, _ = exported("residual", "onnxruntime-x86", folder)
    whole = path.read_bytes()
    (tmp_path / "truncated.onnx").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.onnx").write_text("hello")
    (tmp_path / "empty.onnx").write_bytes(b"")
    for name in ("truncated", "text", "empty"):
        with pytest.raises(ArtifactError, match=f"{name}.onnx"):
            read_metadata(tmp_path / f"{name}.onnx")
    with pytest.raises(ArtifactError, match="there is no file"):
        read_metadata(tmp_path / "none.onnx")
    foreign = onnx.load(path)
    del foreign.metadata_props[:]
    onnx.save(foreign, tmp_path / "foreign.onnx")
    model, _, data = exported("residual", "onnxruntime-x86", folder)
    with pytest.raises(ArtifactError, match="was not written by isobit"):
        verify(tmp_path / "foreign.onnx", model, [data], engine=Fake())


def test_a_file_of_another_model(folder: Path) -> None:
    """Another calibration, another width, another network: other integers."""
    _, path, data = exported("residual", "onnxruntime-x86", folder)
    net, _ = small_networks()["residual"]
    for settings in ({"bits": 7}, {"weight_observer": "percentile"}, {"keep_float": ["conv2"]}):
        other = isobit.quantize(net, [(data,)], target="onnxruntime-x86", **settings)
        with pytest.raises(ArtifactError, match="holds other integers than this model"):
            verify(path, other, [data], engine=Fake())


@pytest.mark.parametrize(
    ("data", "error", "says"),
    [
        ([], CalibrationError, "verification data is empty"),
        ([torch.full((2, 3, 8, 8), float("inf"))], CalibrationError, "holds Inf"),
        ([torch.randn(2, 3, 9, 8)], (EngineError, ArtifactError), "shape|×"),
        ([torch.randn(2, 4, 8, 8)], (EngineError, ArtifactError), "shape|×"),
        ([torch.randn(2, 3, 8, 8).double()], (EngineError, ArtifactError), "float32"),
        ([((torch.randn(2, 3, 8, 8), torch.randn(2, 1)), None)], (CalibrationError, ArtifactError), "inputs|tensors"),
    ],
)
def test_data_that_does_not_fit(data: Any, error: Any, says: str, folder: Path) -> None:
    _, path, _ = exported("residual", "onnxruntime-x86", folder)
    with pytest.raises(error, match=says):
        verify(path, None, data, engine=Fake())


def test_what_differs_only_in_large_batches_is_located_there(folder: Path) -> None:
    """Kernels may sum otherwise for other batches, and the samples that differ agree when they run alone."""
    engine("onnxruntime")
    model, path, data = exported("residual", "onnxruntime-x86", folder)
    calls: list[int] = []

    def change(y: np.ndarray) -> np.ndarray:
        calls.append(len(y))
        return y if len(y) < len(data[0]) else np.roll(y, 1, axis=1)

    certificate = verify(path, model, [data], engine=Twisted(change))
    assert min(calls) < len(data[0]), "a few samples are tried first"
    proof = next(c for c in certificate.comparisons if (c.left, c.right) == ("reference", "twisted"))
    assert proof.first is not None


@pytest.mark.skipif(bool(ENGINES["litert"]().missing()), reason=ENGINES["litert"]().missing() or "installed")
@pytest.mark.parametrize("engine", ["litert", "litert-reference"])
@pytest.mark.parametrize("network", ["residual", "depthwise", "concat", "vit", "bert"])
def test_a_litert_file(network: str, engine: str, tmp_path: Path) -> None:
    """Exact on both sets of kernels; where the simulation differs, the op is found across the two layouts."""
    net, inputs = small_networks()[network]
    model = isobit.quantize(net, [(inputs,)], target="litert")
    isobit.export(model, tmp_path / "net.tflite", format="litert")
    found = isobit.verify(tmp_path / "net.tflite", model, [(inputs,)], engine=engine)
    assert (found.verdict, found.target) == ("exact", "litert")
    assert bool(found.float_islands) == (network in ("vit", "bert"))  # attention, norms and GELU
    assert found.comparisons[0].total > 0
    for comparison in found.comparisons[1:]:
        assert comparison.equal == comparison.total or comparison.first is not None
    with pytest.raises(EngineError, match="onnxruntime takes files of the format onnx"):
        isobit.verify(tmp_path / "net.tflite", model, [(inputs,)], engine="onnxruntime")
