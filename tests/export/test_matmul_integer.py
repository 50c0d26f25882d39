"""Dynamic ranges: the file's integers multiplied by numpy are ONNX Runtime's result, bit by bit."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import isobit
from export.linear_networks import another, constants, quantized, weights_of
from isobit.core.errors import SettingError
from isobit.core.granularity import PerChannel, PerTensor
from isobit.core.scheme import Scheme
from isobit.engines import OnnxRuntime
from zoo import small_networks

TARGET = "onnxruntime-dynamic"
needs_onnxruntime = pytest.mark.skipif(bool(OnnxRuntime().missing()), reason=OnnxRuntime().missing())

WEIGHTS = {
    "per channel": Scheme(granularity=PerChannel(0), narrow=True),
    "per tensor": Scheme(granularity=PerTensor()),
    "zero points": Scheme(granularity=PerChannel(0), symmetric=False),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_the_file_holds_the_weights(name: str, tmp_path: Path) -> None:
    with another(TARGET, weight=WEIGHTS[name]) as target:
        model, _, file = quantized(tmp_path / "net.onnx", target)
    expected, stored = weights_of(model), constants(file)
    products = [node for node in file.graph.node if node.op_type == "MatMulInteger"]
    assert len(products) == len(expected) == 3
    for node, (layer, w) in zip(products, expected.items(), strict=True):
        assert node.name.startswith(f"{layer}.")
        q = onnx.numpy_helper.to_array(stored[node.input[1]]).astype(np.int64)
        z = onnx.numpy_helper.to_array(stored[node.input[3]]).astype(np.int64) if len(node.input) > 3 else 0
        assert (len(node.input) > 3) == (name == "zero points")
        scale = onnx.numpy_helper.to_array(stored[f"deployed_{layer}.integer.scale"])
        np.testing.assert_array_equal(((q - z) * scale).astype(np.float32), w.T)
    kinds = [node.op_type for node in file.graph.node]
    assert kinds.count("DynamicQuantizeLinear") == 2  # two layers read one tensor
    assert not {"Gemm", "MatMul", "DequantizeLinear"} & set(kinds)


@needs_onnxruntime
@pytest.mark.parametrize("name", WEIGHTS)
def test_one_layer_in_numpy(name: str, tmp_path: Path) -> None:
    """float32(Σ (q_x - z_x) (q_w - z_w)) · float32(s_x · s_w) + b with s_x and z_x of the whole batch's range."""
    torch.manual_seed(0)
    net, x = torch.nn.Sequential(torch.nn.Linear(48, 10)), torch.randn(7, 48) + 0.5
    with another(TARGET, weight=WEIGHTS[name]) as target:
        model = isobit.quantize(net, [x], target=target)
        isobit.export(model, tmp_path / "net.onnx")
    (w,) = weights_of(model).values()
    (node,) = [n for n in onnx.load(tmp_path / "net.onnx").graph.node if n.op_type == "MatMulInteger"]
    scale = onnx.numpy_helper.to_array(constants(onnx.load(tmp_path / "net.onnx"))["deployed__0.integer.scale"])
    low, high = min(x.min().item(), 0.0), max(x.max().item(), 0.0)
    s = (np.float32(high) - np.float32(low)) / np.float32(255)
    z = np.rint(np.clip(np.float32(0) - np.float32(low) / s, 0, 255))
    q = np.clip(np.rint(x.numpy() / s) + z, 0, 255) - z
    sums = q.astype(np.int64) @ np.rint(w / scale.reshape(-1, 1)).astype(np.int64).T
    expected = sums.astype(np.float32) * (s * scale).astype(np.float32) + net[0].bias.detach().numpy()
    (y,) = OnnxRuntime().load(tmp_path / "net.onnx").run([x.numpy()])
    np.testing.assert_array_equal(y, expected)
    assert node.input[0] != node.input[2]


@needs_onnxruntime
@pytest.mark.parametrize("name", WEIGHTS)
def test_the_certificate(name: str, tmp_path: Path) -> None:
    """The reference multiplies integers as the engine does; the simulation multiplies floats, and is that close."""
    with another(TARGET, weight=WEIGHTS[name]) as target:
        model, x, _ = quantized(tmp_path / "net.onnx", target)
        proof = isobit.verify(tmp_path / "net.onnx", model, [x])
    assert proof.verdict == "exact"
    by_pair = {(c.left, c.right): c for c in proof.comparisons}
    assert by_pair["reference", "onnxruntime"].largest == 0
    assert by_pair["simulation", "reference"].largest < 1e-5
    fused = {"DynamicQuantizeMatMul", "MatMulIntegerToFloat"}
    assert sum(k.count for k in proof.kernels if k.name in fused) == 3
    assert "MatMulInteger" not in {k.name for k in proof.kernels}


@needs_onnxruntime
def test_every_linear_layer_of_a_transformer(tmp_path: Path) -> None:
    """Behind reshapes that the exporter has merged too, which do not cancel."""
    net, inputs = small_networks()["bert"]
    model = isobit.quantize(net, [(inputs,)], target=TARGET)
    isobit.export(model, tmp_path / "net.onnx")
    kinds = [node.op_type for node in onnx.load(tmp_path / "net.onnx").graph.node]
    layers = [m for m in net.modules() if isinstance(m, torch.nn.Linear)]
    assert kinds.count("MatMulInteger") == len(layers) == 14
    assert not {"Gemm", "DequantizeLinear"} & set(kinds)
    proof = isobit.verify(tmp_path / "net.onnx", model, [(inputs,)])
    assert proof.verdict in ("exact", "bounded")
    assert proof.comparisons[0].largest < 1e-5
    fused = {"DynamicQuantizeMatMul", "MatMulIntegerToFloat"}
    assert sum(k.count for k in proof.kernels if k.name in fused) == 14


def test_few_bits_are_packed_and_unpack(tmp_path: Path) -> None:
    """Eight times the weights, so that packing pays; the planes are read back by the integer reference."""
    torch.manual_seed(0)
    net, x = (
        torch.nn.Sequential(torch.nn.Linear(256, 128), torch.nn.ReLU(), torch.nn.Linear(128, 8)),
        torch.randn(9, 256),
    )
    model = isobit.quantize(net, [x], target=TARGET, bits=4, layer_bits={"*": 4})
    isobit.export(model, tmp_path / "net.onnx")
    assert (tmp_path / "net.onnx").stat().st_size < 128 * (256 + 8) // 2 + 128 * 12 + 8000
    if not OnnxRuntime().missing():
        proof = isobit.verify(tmp_path / "net.onnx", model, [x])
        assert proof.verdict == "exact"
        assert all(c.largest < 1e-4 for c in proof.comparisons)


def test_activations_have_bytes(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="has bytes as activations: give weight_bits alone"):
        quantized(tmp_path / "net.onnx", TARGET, activation_bits=4)
    with pytest.raises(SettingError, match="calibrates no activations"):
        quantized(tmp_path / "net.onnx", TARGET, activation_quantizer="lsq")
