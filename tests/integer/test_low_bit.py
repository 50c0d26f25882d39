"""Products of few bits in the reference: numpy's integers, and ONNX Runtime's kernels bit by bit."""

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from isobit.core.qparams import dynamic_range
from isobit.engines import OnnxRuntime
from isobit.integer import Reference
from isobit.integer.low_bit import dequantized_blocks, round_blocks

needs_onnxruntime = pytest.mark.skipif(bool(OnnxRuntime().missing()), reason=OnnxRuntime().missing())

INPUTS = {
    "both signs": lambda rng: rng.standard_normal((5, 40)),
    "positive": lambda rng: rng.random((5, 40)) + 3,
    "negative": lambda rng: -rng.random((5, 40)) - 3,
    "zero": lambda rng: np.zeros((5, 40)),
    "tiny": lambda rng: rng.standard_normal((5, 40)) * 1e-30,
    "far from zero": lambda rng: rng.standard_normal((5, 40)) * 1e4 + 7e4,
}


def model(
    nodes: list[onnx.NodeProto], width: int, outputs: dict[str, int], constants: dict[str, Any]
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", width])],
        [helper.make_tensor_value_info(name, kind, None) for name, kind in outputs.items()],
        [numpy_helper.from_array(np.asarray(a), name) for name, a in constants.items()],
    )  # fmt: skip
    domains = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=domains, ir_version=10)


def in_onnxruntime(file: onnx.ModelProto, x: np.ndarray) -> list[np.ndarray]:
    import onnxruntime

    session = onnxruntime.InferenceSession(file.SerializeToString(), providers=["CPUExecutionProvider"])
    return [np.asarray(y) for y in session.run(None, {"x": x})]


@needs_onnxruntime
@pytest.mark.parametrize("name", INPUTS)
def test_dynamic_ranges_are_those_of_the_engine(name: str) -> None:
    """Scale, zero point and every integer, over many draws: float64 arithmetic misses the last bit of some scales."""
    kinds = {"q": onnx.TensorProto.UINT8, "s": onnx.TensorProto.FLOAT, "z": onnx.TensorProto.UINT8}
    file = model([helper.make_node("DynamicQuantizeLinear", ["x"], list(kinds))], 40, kinds, {})
    reference = Reference(file)
    for seed in range(40):
        x = np.asarray(INPUTS[name](np.random.default_rng(seed)), np.float32)
        q, s, z = in_onnxruntime(file, x)
        mine = reference.run([x]).outputs
        for found, expected in zip(mine, (q, s, z), strict=True):
            np.testing.assert_array_equal(found, expected)
        scale, zero_point = dynamic_range(
            torch.from_numpy(x.min(keepdims=True)), torch.from_numpy(x.max(keepdims=True))
        )
        assert (scale.item(), zero_point.item()) == (s.item(), z.item())


def test_an_integer_product_is_numpys() -> None:
    rng = np.random.default_rng(0)
    w, z = rng.integers(-128, 128, (40, 7)).astype(np.int8), rng.integers(-128, 128, 7).astype(np.int8)
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "zx"]),
        helper.make_node("MatMulInteger", ["q", "w", "zx", "z"], ["y"]),
    ]
    outputs = {"y": onnx.TensorProto.INT32, "q": onnx.TensorProto.UINT8, "zx": onnx.TensorProto.UINT8}
    run = Reference(model(nodes, 40, outputs, {"w": w, "z": z})).run([rng.standard_normal((5, 40)).astype(np.float32)])
    y, q, zx = run.outputs
    expected = (q.astype(np.int64) - zx.astype(np.int64)) @ (w.astype(np.int64) - z.astype(np.int64))
    np.testing.assert_array_equal(y, expected)
    assert run.exact


@needs_onnxruntime
@pytest.mark.parametrize("level", [0, 4])
@pytest.mark.parametrize(("bits", "block"), [(2, 32), (4, 16), (4, 128), (8, 32)])
def test_packed_weights_against_the_engine(bits: int, block: int, level: int) -> None:
    """2,000 rows each; 200 inputs, so that the last group is not full; zero points that end within a byte."""
    rng = np.random.default_rng(bits)
    width, outputs, groups = 200, 12, -(-200 // block)
    packed = rng.integers(0, 256, (outputs, groups, block * bits // 8)).astype(np.uint8)
    scale = (rng.random((outputs, groups)) + 0.5).astype(np.float32)
    zero_points = rng.integers(0, 256, (outputs, -(-groups * bits // 8))).astype(np.uint8)
    at = {"K": width, "N": outputs, "bits": bits, "block_size": block, "accuracy_level": level}
    node = helper.make_node("MatMulNBits", ["x", "w", "s", "z", "", "b"], ["y"], domain="com.microsoft", **at)
    constants = {"w": packed, "s": scale, "z": zero_points, "b": rng.standard_normal(outputs).astype(np.float32)}
    file = model([node], width, {"y": onnx.TensorProto.FLOAT}, constants)
    x = rng.standard_normal((2_000, width)).astype(np.float32)
    (expected,), reference = in_onnxruntime(file, x), Reference(file)
    found = reference.run([x])
    assert np.abs(found.outputs[0] - expected).max() <= 2e-6 * np.abs(expected).max()
    assert not found.exact
    assert bool(reference.rounded_inputs) == (level == 4)


def test_rounding_in_blocks() -> None:
    x = torch.tensor([[2.0, -127.0, 0.4, 0.6, 0.0, 0.0, 3.0]])
    expected = torch.tensor([[2.0, -127.0, 0.0, 1.0, 0.0, 0.0, 3.0]])
    torch.testing.assert_close(round_blocks(x, 4), expected)
    assert torch.equal(round_blocks(x, 2)[0, 4:6], torch.zeros(2))


def test_blocks_along_any_axis() -> None:
    q = np.arange(12, dtype=np.uint8).reshape(4, 3)
    scale = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
    found = dequantized_blocks(q, scale, np.ones((2, 3), np.uint8), 0, 2)
    assert found.tolist() == [[-1, 0, 3], [2, 6, 12], [20, 30, 42], [32, 45, 60]]
