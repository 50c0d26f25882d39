"""The parts of a file, run one after the other, are the file; and parts that do the same work are known as such."""

import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import isobit
from isobit.analysis.alone import drawn, forms, no_work, taken_by, taken_by_file
from isobit.analysis.onnx_layers import FLOAT_SIDE, OnnxLayers
from isobit.engines import ENGINES
from isobit.recipes.latency_table import float_file


class Net(nn.Module):
    """Twice the same convolution, one of another stride, a residual branch, a shared input, and float ops."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.a, self.b = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.strided = nn.Conv2d(8, 8, 3, padding=1, stride=2)
        self.norm, self.linear = nn.LayerNorm(8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x))
        x = torch.relu(self.a(x)) + x
        x = self.strided(torch.relu(self.b(x)))
        return self.linear(self.norm(x.mean((2, 3))))


X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def net() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture(scope="module", params=["onnxruntime-x86", "openvino-cpu", "academic"])
def file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = isobit.quantize(net(), [X], target=request.param, bits=8, reconstruction="none")
    return Path(isobit.export(model, tmp_path_factory.mktemp("file") / "net.onnx").path)


def run(model: onnx.ModelProto, inputs: list[np.ndarray], folder: Path, engine: str = "fake") -> list[np.ndarray]:
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, folder / "part.onnx")
    return ENGINES[engine]().load(folder / "part.onnx").run(inputs)


@pytest.mark.parametrize("engine", ["fake", "onnxruntime"])
def test_the_parts_in_turn_give_the_networks_output(file: Path, tmp_path: Path, engine: str) -> None:
    if ENGINES[engine]().missing():
        pytest.skip(ENGINES[engine]().missing())
    model = onnx.load(file)
    layers = OnnxLayers(model, batch=4)
    values = {"x": X.numpy()}
    ops: list[str] = []
    for names in layers.groups():
        part = layers.part(names)
        assert part is not None
        ops += part.ops
        read = [values[v.name] for v in part.model.graph.input]
        written = [v.name for v in part.model.graph.output]
        values |= dict(zip(written, run(part.model, read, tmp_path, engine), strict=True))
    (expected,) = run(model, [X.numpy()], tmp_path, engine)
    np.testing.assert_array_equal(values[model.graph.output[0].name], expected)
    assert len(set(ops)) == len(ops), "no op is in two parts"


def test_a_part_with_its_quantizers_is_the_part_between_floats(file: Path, tmp_path: Path) -> None:
    layers = OnnxLayers(onnx.load(file), batch=2)
    names = next(g for g in layers.groups() if "b" in g)
    inner, outer = layers.part(names), layers.part(names, quantizers=True)
    assert inner is not None and outer is not None
    assert inner.signature == outer.signature
    (q,) = drawn(taken_by(inner.model))
    scale, zero = constants_of(outer.model, f"{inner.model.graph.input[0].name}{FLOAT_SIDE}")
    x = ((q.astype(np.float32) - zero) * scale).astype(np.float32)
    (y,), (integers,) = run(outer.model, [x], tmp_path), run(inner.model, [q], tmp_path)
    if integers.dtype.kind in "iu":
        scale, zero = constants_of(outer.model, f"{inner.model.graph.output[0].name}{FLOAT_SIDE}")
        integers = ((integers.astype(np.float32) - zero) * scale).astype(np.float32)
    np.testing.assert_allclose(y, integers, rtol=1e-6)


def constants_of(model: onnx.ModelProto, node: str) -> tuple[float, int]:
    tensors = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    (found,) = [n for n in model.graph.node if n.name == node]
    return float(tensors[found.input[1]]), int(tensors[found.input[2]])


def test_equal_work_has_an_equal_signature_and_other_work_another() -> None:
    torch.manual_seed(0)
    layers = OnnxLayers(quantized(), batch=1)
    of = {p.name: p for g in layers.groups() if (p := layers.part(g)) is not None}
    assert of["a"].signature == of["b"].signature
    assert len({of[name].signature for name in ("first", "a", "strided")}) == 3
    assert of["strided"].what == "Conv 3 × 3 / 2, 8 → 8, reads 1 × 8 × 8 × 8"
    assert of["linear"].what == "Gemm, 8 → 4, reads 1 × 8"
    more = OnnxLayers(quantized(), batch=2).part(of["a"].ops)
    assert more is not None and more.signature != of["a"].signature
    few = OnnxLayers(quantized(4), batch=1).part(of["a"].ops)
    assert few is not None and few.signature != of["a"].signature


@cache
def quantized(bits: int = 8) -> onnx.ModelProto:
    model = isobit.quantize(net(), [X], target="onnxruntime-x86", layer_bits={"*": (bits, bits)}, reconstruction="none")
    with tempfile.TemporaryDirectory() as folder:
        return onnx.load(isobit.export(model, Path(folder) / "net.onnx").path)


def test_the_same_ops_of_the_float_file(tmp_path: Path) -> None:
    layers = OnnxLayers(quantized(), batch=2)
    float_layers = OnnxLayers(onnx.load(float_file(net(), (X[:2],), tmp_path / "float.onnx")), batch=2)
    names = next(g for g in layers.groups() if "a" in g)
    part = float_layers.part(names)
    assert part is not None and part.ops == names
    x = torch.randn(2, 8, 8, 8)
    with torch.no_grad():
        expected = torch.relu(net().a(x)) if "a" in names and len(names) == 2 else None
    assert expected is not None
    np.testing.assert_allclose(run(part.model, [x.numpy()], tmp_path)[0], expected.numpy(), rtol=1e-5, atol=1e-6)
    assert float_layers.part(["no such op"]) is None


def test_a_file_without_quantizers_falls_into_ops_and_their_activations(tmp_path: Path) -> None:
    groups = OnnxLayers(onnx.load(float_file(net(), (X[:2],), tmp_path / "float.onnx")), batch=1).groups()
    convolutions = [g for g in groups if g[0] in ("first", "a", "b", "strided")]
    assert [len(g) for g in convolutions] == [2, 2, 2, 1]


def test_channels_last_computes_the_same(tmp_path: Path) -> None:
    layers = OnnxLayers(quantized(), batch=2)
    part = layers.part(next(g for g in layers.groups() if "strided" in g))
    assert part is not None
    first, last = forms(part.model)
    (q,) = drawn(taken_by(first))
    (y,) = run(first, [q], tmp_path)
    (turned,) = run(last, [np.ascontiguousarray(q.transpose(0, 2, 3, 1))], tmp_path)
    np.testing.assert_array_equal(turned.transpose(0, 3, 1, 2), y)
    linear = layers.part(["linear"])
    assert linear is not None and len(list(forms(linear.model))) == 1


def test_values_for_every_kind_of_input(tmp_path: Path) -> None:
    kinds = [np.dtype(k) for k in ("float32", "uint8", "int8", "int64")]
    f, u, s, i = drawn([((64, 8), k) for k in kinds])
    assert [a.dtype for a in (f, u, s, i)] == kinds
    assert u.min() < 5 and u.max() > 250 and s.min() < -120 and s.max() > 120
    assert not i.any() and abs(float(f.mean())) < 0.2
    onnx.save(no_work(), tmp_path / "call.onnx")
    assert taken_by_file(tmp_path / "call.onnx") == [((1, 1), np.dtype("float32"))]
    assert run(no_work(), [np.float32([[-1]])], tmp_path)[0].item() == 0


def test_products_with_packed_weights_have_shapes() -> None:
    torch.manual_seed(0)
    mlp = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 32)).eval()
    model = isobit.quantize(mlp, [torch.randn(8, 64)], target="onnxruntime-weights")
    with tempfile.TemporaryDirectory() as folder:
        layers = OnnxLayers(onnx.load(isobit.export(model, Path(folder) / "net.onnx").path), batch=3)
    assert [len(g) for g in layers.groups()] == [2, 1]
    first, last = (layers.part(g) for g in layers.groups())
    assert first is not None and last is not None
    assert taken_by(last.model) == [((3, 128), np.dtype("float32"))]
    assert [d.dim_value for d in last.model.graph.output[0].type.tensor_type.shape.dim] == [3, 32]
