"""The rule of PyTorch's compiler against oneDNN's own kernels, called as its code calls them."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from integer.graphs import QdqGraph
from isobit.core.arithmetic import INDUCTOR
from isobit.engines.instruction_set import instruction_set, saturates_pairs
from isobit.integer import run_reference

pytestmark = [
    pytest.mark.skipif(
        not torch.backends.mkldnn.is_available() or torch.cpu.get_capabilities().get("architecture") != "x86_64",
        reason="PyTorch was built without oneDNN's integer kernels for x86",
    ),
    pytest.mark.skipif(saturates_pairs(instruction_set()), reason="sums of pairs saturate before VNNI"),
]


def graph(kind: str, relu: bool, seed: int) -> tuple[QdqGraph, dict[str, np.ndarray]]:
    """A layer between quantizers, and its parameters; the output's scale spreads the sums over the levels."""
    g = QdqGraph(seed)
    sizes = {"conv": (32, 32, 3), "depthwise": (32, 32, 3), "pointwise": (64, 32, 1), "linear": (64, 96, 0)}[kind]
    outputs, inputs, k = sizes
    shape = (outputs, 1 if kind == "depthwise" else inputs, *([k, k] if k else []))
    w = g.rng.integers(-127, 128, shape).astype(np.int8)
    s = g.rng.uniform(0.001, 0.02, outputs).astype(np.float32)
    s_x, z_x = np.float32(g.rng.uniform(0.005, 0.05)), int(g.rng.integers(100, 150))
    fan = int(np.prod(shape[1:]))
    spread = 127 * 60 * np.sqrt(fan) * s_x * s.mean()
    b = (g.rng.standard_normal(outputs) * spread).astype(np.float32)
    s_y, z_y = np.float32(spread / 40), 0 if relu else int(g.rng.integers(100, 150))
    x = g.qdq(g.input("batch", inputs, *([12, 12] if k else [])), scale=s_x, zero_point=z_x)
    names = [g.constant("w", w), g.constant("s", s), g.constant("z", np.zeros(outputs, np.int8))]
    weight, bias = g.node("DequantizeLinear", names, axis=0), g.constant("b", b)
    if k:
        groups = inputs if kind == "depthwise" else 1
        y = g.node("Conv", [x, weight, bias], pads=[k // 2] * 4, group=groups, kernel_shape=[k, k])
    else:
        y = g.node("Gemm", [x, weight, bias], transB=1)
    g.output(g.qdq(g.node("Relu", [y]) if relu else y, scale=s_y, zero_point=z_y))
    values = {"w": w, "s": s, "s_x": s_x, "z_x": np.asarray(z_x), "b": b, "s_y": s_y, "z_y": np.asarray(z_y)}
    return g, {name: np.asarray(value) for name, value in values.items()}


def kernel(kind: str, relu: bool, x: np.ndarray, v: dict[str, np.ndarray]) -> np.ndarray:
    """What oneDNN makes of quantized inputs."""
    w, s, b = (torch.from_numpy(v[name]) for name in ("w", "s", "b"))
    s_x, z_x, s_y, z_y = float(v["s_x"]), int(v["z_x"]), float(v["s_y"]), int(v["z_y"])
    given, zeros = torch.from_numpy(x), torch.zeros(len(s), dtype=torch.int32)
    after = (s_y, z_y, torch.uint8, "relu" if relu else "none", [], "")
    if kind == "linear":
        packed = torch.ops.onednn.qlinear_prepack(w, list(x.shape))
        y = torch.ops.onednn.qlinear_pointwise(given, s_x, z_x, packed, s, zeros, b, *after)
    else:
        pad, groups = [w.shape[-1] // 2] * 2, 32 if kind == "depthwise" else 1
        windows = ([1, 1], pad, [1, 1], groups)
        packed = torch.ops.onednn.qconv_prepack(w, s, s_x, z_x, *windows, list(x.shape))
        given = given.contiguous(memory_format=torch.channels_last)
        y = torch.ops.onednn.qconv_pointwise(given, s_x, z_x, packed, s, zeros, b, *windows, *after)
    found: np.ndarray = y.numpy()
    return found


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("kind", ["conv", "depthwise", "pointwise", "linear"])
def test_products(kind: str, relu: bool, tmp_path: Path) -> None:
    """Bit for bit, zero points that are not the lowest level included."""
    total = 0
    for seed in range(4):
        g, values = graph(kind, relu, seed)
        shape = (64, 96) if kind == "linear" else (8, 32, 12, 12)
        q = np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)
        x = ((q.astype(np.float32) - float(values["z_x"])) * values["s_x"]).astype(np.float32)
        run = run_reference(g.save(tmp_path / "net.onnx"), [x], INDUCTOR)
        first, last = run.integers.values()
        np.testing.assert_array_equal(first, q)
        y = kernel(kind, relu, q, values)
        np.testing.assert_array_equal(last, y)
        assert len(np.unique(y)) > 100
        total += y.size
    assert total >= 10_000


def test_the_order_of_the_products_shows() -> None:
    """In float results of oneDNN: (acc · s_x) · s_w + b, and no other order."""
    _, v = graph("linear", False, 9)
    q = np.random.default_rng(9).integers(0, 256, (64, 96)).astype(np.uint8)
    w, s, b = (torch.from_numpy(v[name]) for name in ("w", "s", "b"))
    packed = torch.ops.onednn.qlinear_prepack(w, list(q.shape))
    y = torch.ops.onednn.qlinear_pointwise(
        torch.from_numpy(q), float(v["s_x"]), int(v["z_x"]), packed, s, torch.zeros(64, dtype=torch.int32), b, 1.0, 0,
        torch.float32, "none", [], "",
    )  # fmt: skip
    acc = F.linear(torch.from_numpy(q).double() - int(v["z_x"]), w.double()).float()
    assert torch.equal(y, acc * float(v["s_x"]) * s + b)
    assert not torch.equal(y, acc * (s * float(v["s_x"])) + b)
