"""Weights below a byte: the planes are the bits, engines unpack them, the file is as small as the bits say."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch import nn

import isobit
from isobit.engines import OnnxRuntime
from isobit.export import OnnxQdq
from isobit.export.packing import pack_weights, planes
from isobit.graph.convert import Levels

needs_onnxruntime = pytest.mark.skipif(bool(OnnxRuntime().missing()), reason=OnnxRuntime().missing())

LEVELS = {
    "one bit": (-1, 1),
    "ternary": (-1, 0, 1),
    "two bits": (-2, -1, 0, 1),
    "powers": (-8, -4, -2, -1, 0, 1, 2, 4, 8),
    "four bits": tuple(range(-8, 8)),
    "seven bits": tuple(range(-64, 64)),
    "indices": tuple(range(5)),
}


@pytest.mark.parametrize("bits", range(1, 8))
def test_planes_are_the_bits_of_the_indices(bits: int) -> None:
    indices = np.random.default_rng(bits).integers(0, 1 << bits, 37)
    found = planes(indices, bits)
    assert found.shape == (bits, 5, 1)
    for i, index in enumerate(indices):
        assert sum(int(found[k, i // 8, 0] >> (i % 8) & 1) << k for k in range(bits)) == index


@pytest.mark.parametrize("name", [*LEVELS, "two bits, offset", "four bits, offset"])
def test_the_ops_unpack_what_was_packed(name: str) -> None:
    """By ONNX's own reference evaluator; a size that is no multiple of 8 among them."""
    table = LEVELS[name.removesuffix(", offset")]
    kind = np.uint8 if min(table) >= 0 else np.int8
    rng = np.random.default_rng(0)
    q = rng.choice(np.array(table, kind), (17, 5, 351))
    offset = rng.choice(np.array(table, np.int32), (17, 1, 1)) if "offset" in name else None
    q = q if offset is None else (q - offset).astype(np.int8)
    scale, zero_point = np.full(17, 0.5, np.float32), np.zeros(17, kind)
    constants = {"w": q, "s": scale, "z": zero_point}
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("DequantizeLinear", ["w", "s", "z"], ["y"], axis=0)], "g", [],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, q.shape)],
        [onnx.numpy_helper.from_array(a, n) for n, a in constants.items()],
    )  # fmt: skip
    plain = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)])
    model = ir.from_proto(plain)
    pack_weights(model, {"w": Levels(table, None if offset is None else torch.from_numpy(offset))})
    packed = ir.to_proto(model)
    onnx.checker.check_model(packed, full_check=True)
    (y,) = ReferenceEvaluator(packed).run(None, {})
    assert np.array_equal(y, q.astype(np.float32) / 2)
    bits = (len(table) - 1).bit_length()
    saved = plain.ByteSize() - packed.ByteSize()
    assert saved > q.size * (8 - bits) / 8 - 2000


def test_what_is_small_stays_as_it_is() -> None:
    q = np.zeros((8, 4), np.int8)
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["w"], ["y"])], "g", [],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.INT8, q.shape)],
        [onnx.numpy_helper.from_array(q, "w")],
    )  # fmt: skip
    model = ir.from_proto(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)]))
    pack_weights(model, {"w": Levels((-1, 0))})
    assert [node.op_type for node in model.graph] == ["Identity"]


def wide_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.BatchNorm2d(64), nn.ReLU(),
        nn.Conv2d(64, 32, 1), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 16, 10),
    ).eval()  # fmt: skip


@needs_onnxruntime
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_packed_file_runs_the_same_integer_kernels(bits: int, tmp_path: Path) -> None:
    x = torch.randn(16, 3, 8, 8)
    model = isobit.quantize(wide_network(), [x], target="onnxruntime-x86", weight_bits=bits, activation_bits=8)
    example = model.meta["example"]
    small = OnnxQdq().export(model, tmp_path / "small.onnx", example=example)
    large = OnnxQdq(packed=False).export(model, tmp_path / "large.onnx", example=example)
    assert small.integers_sha256 == large.integers_sha256
    body = 32 * 64 * 9 + 64 * 32
    assert large.path.stat().st_size - small.path.stat().st_size > body * (8 - bits) / 8 - 4000
    found = [OnnxRuntime().load(a.path) for a in (small, large)]
    assert found[0].kernels() == found[1].kernels()
    assert found[0].float_islands() == ()
    assert isobit.verify(small.path, model, [x]).verdict == "exact"


CODEBOOKS = {"k_means": 4, "ttq": 2, "abc_net": 2, "logarithmic": 5, "lcq": 3}


@needs_onnxruntime
@pytest.mark.parametrize("method", CODEBOOKS)
def test_a_codebook_is_stored_as_indices_and_its_table(method: str, tmp_path: Path) -> None:
    x = torch.randn(16, 3, 8, 8)
    model = isobit.prepare(
        wide_network(), x, target="academic", weight_bits=CODEBOOKS[method], activation_bits=8, method=method
    )
    isobit.calibrate(model, [x])
    isobit.finish(model.eval())
    path = isobit.export(model, tmp_path / "net.onnx").path
    (y,) = OnnxRuntime().load(path).run([x.numpy()])
    torch.testing.assert_close(torch.from_numpy(y), model(x), rtol=1e-4, atol=1e-4)
    floats = [t for t in onnx.load(path).graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
    assert max(int(np.prod(t.dims)) for t in floats) <= 256  # tables, scales and biases: no weight is left in float


@needs_onnxruntime
@pytest.mark.parametrize(("method", "bits"), [("apot", 4), ("apot", 3), ("bi_real", 1)])
def test_activations_on_levels_of_their_own_are_looked_up(method: str, bits: int, tmp_path: Path) -> None:
    x = torch.randn(16, 3, 8, 8)
    model = isobit.prepare(wide_network(), x, target="academic", bits=bits, method=method)
    isobit.calibrate(model, [x])
    isobit.finish(model.eval())
    path = isobit.export(model, tmp_path / "net.onnx").path
    (y,) = OnnxRuntime().load(path).run([x.numpy()])
    torch.testing.assert_close(torch.from_numpy(y), model(x), rtol=1e-4, atol=1e-4)
    assert isobit.verify(path, model, [x]).verdict in ("exact", "bounded")
