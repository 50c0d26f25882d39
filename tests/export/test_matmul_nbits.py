"""MatMulNBits: numpy unpacks from the file what was quantized, and ONNX Runtime computes what numpy does."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import isobit
from export.linear_networks import another, constants, from_bits, quantized, weights_of
from isobit.core.errors import SettingError
from isobit.engines import OnnxRuntime
from isobit.export.matmul_nbits import pack_rows
from isobit.targets import MatMulNBits

TARGET = "onnxruntime-weights"
needs_onnxruntime = pytest.mark.skipif(bool(OnnxRuntime().missing()), reason=OnnxRuntime().missing())


def unpacked(file: onnx.ModelProto) -> dict[str, np.ndarray]:
    """The weights that the file holds, by the definition of the op: w = (q - z) · s, rows of whole bytes."""
    found, stored = {}, constants(file)
    for node in file.graph.node:
        if node.op_type != "MatMulNBits":
            continue
        at = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        bits, block, outputs = at["bits"], at["block_size"], at["N"]
        groups = -(-at["K"] // block)
        packed, scale = (onnx.numpy_helper.to_array(stored[name]) for name in node.input[1:3])
        assert packed.shape == (outputs, groups, block * bits // 8)
        q = from_bits(packed.tobytes(), bits).reshape(outputs, groups, block)
        z = np.full((outputs, groups), 2 ** (bits - 1))
        if len(node.input) > 3 and node.input[3]:
            rows = onnx.numpy_helper.to_array(stored[node.input[3]])
            assert rows.shape == (outputs, -(-groups * bits // 8))
            z = np.stack([from_bits(row.tobytes(), bits)[:groups] for row in rows])
        w = (q - z[..., None]).astype(np.float32) * scale.reshape(outputs, groups, 1)
        found[node.name] = w.reshape(outputs, -1)[:, : at["K"]]
    return found


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("bits", "width", "group"), [(2, 2, 32), (3, 4, 32), (4, 4, 16), (4, 4, 32), (8, 8, 32)])
def test_the_file_holds_the_weights(bits: int, width: int, group: int, symmetric: bool, tmp_path: Path) -> None:
    settings = {"bits": bits, "group_size": group, "symmetric_weights": symmetric}
    model, _, file = quantized(tmp_path / "net.onnx", TARGET, **settings)
    found, expected = unpacked(file), weights_of(model)
    assert found.keys() == expected.keys() == {"left", "right", "last"}
    for name, w in expected.items():
        np.testing.assert_array_equal(found[name], w)
        assert len(np.unique(w)) > 2
    products = [node for node in file.graph.node if node.op_type == "MatMulNBits"]
    assert {onnx.helper.get_node_attr_value(node, "bits") for node in products} == {width}
    assert {onnx.helper.get_node_attr_value(node, "accuracy_level") for node in products} == {4}
    assert all(bool(len(node.input) > 3 and node.input[3]) != symmetric for node in products)
    assert not {"Gemm", "MatMul", "DequantizeLinear"} & {node.op_type for node in file.graph.node}
    sizes = [t.ByteSize() for t in file.graph.initializer if t.name.endswith(".packed")]
    assert sum(sizes) < (2 * 64 * 96 + 96 * 20) * width // 8 + 3 * 100
    assert bool(model.meta["notes"]) == (bits != width)


def test_rows_end_on_whole_bytes() -> None:
    q = np.array([[1, 2, 3], [0, 15, 7]])
    assert pack_rows(q, 4).tolist() == [[0x21, 0x03], [0xF0, 0x07]]
    assert pack_rows(q % 4, 2).tolist() == [[0b111001], [0b111100]]


@needs_onnxruntime
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_at_level_0_the_engine_computes_what_numpy_does(bits: int, tmp_path: Path) -> None:
    with another(TARGET, form=MatMulNBits(accuracy_level=0)) as target:
        model, x, file = quantized(tmp_path / "net.onnx", target, bits=bits)
        proof = isobit.verify(tmp_path / "net.onnx", model, [x])
    w = unpacked(file)
    (y,) = OnnxRuntime().load(tmp_path / "net.onnx").run([x.numpy()])
    expected = in_numpy(x.numpy().astype(np.float64), w, model)
    assert np.abs(y - expected).max() <= 2e-6 * np.abs(expected).max()
    with torch.no_grad():
        assert np.abs(model(x).numpy() - expected).max() <= 2e-6 * np.abs(expected).max()
    assert proof.verdict == "exact" or (proof.verdict == "bounded" and "another order" in proof.cause)
    assert all(c.largest < 1e-5 for c in proof.comparisons)
    assert [(k.name, k.count) for k in proof.kernels if k.name.startswith("MatMul")] == [("MatMulNBits", 3)]


@needs_onnxruntime
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_at_level_4_the_engine_rounds_its_inputs(bits: int, tmp_path: Path) -> None:
    """One layer, so that no rounding depends on sums before it: x̂ = rint(127 x / max) · max / 127 in runs of 32."""
    torch.manual_seed(0)
    net, x = torch.nn.Sequential(torch.nn.Linear(256, 24)), torch.randn(40, 256)
    model = isobit.quantize(net, [x], target=TARGET, bits=bits)
    isobit.export(model, tmp_path / "net.onnx")
    (w,) = unpacked(onnx.load(tmp_path / "net.onnx")).values()
    runs = x.numpy().reshape(40, 8, 32)
    largest = np.abs(runs).max(-1, keepdims=True)
    rounded = np.rint(runs * (np.float32(127) / largest)).astype(np.float64) * (largest / 127.0)
    expected = rounded.reshape(40, 256) @ w.T.astype(np.float64) + net[0].bias.detach().numpy()
    (y,) = OnnxRuntime().load(tmp_path / "net.onnx").run([x.numpy()])
    assert np.abs(y - expected).max() <= 2e-6 * np.abs(expected).max()
    plain = x.numpy() @ w.T + net[0].bias.detach().numpy()
    assert np.abs(y - plain).max() > 1e-4 * np.abs(expected).max()
    proof = isobit.verify(tmp_path / "net.onnx", model, [x])
    assert proof.verdict == "bounded"
    assert "round float inputs to 8 bits" in proof.cause and "not the simulation" in proof.cause
    by_pair = {(c.left, c.right): c.largest for c in proof.comparisons}
    assert by_pair["reference", "onnxruntime"] < 1e-5 < by_pair["simulation", "reference"]


def in_numpy(x: np.ndarray, w: dict[str, np.ndarray], model: torch.nn.Module) -> np.ndarray:
    """The network of `branches`, in float64."""
    bias = {name: model.get_submodule(name).bias for name in ("left", "last")}
    left, last = (b.detach().numpy() for b in bias.values() if isinstance(b, torch.Tensor))
    inner = np.maximum(x @ w["left"].T + left, 0) * (x @ w["right"].T)
    return np.asarray(inner @ w["last"].T + last)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"group_size": 48}, "one of 16, 32, 64, 128, got 48"),
        ({"activation_bits": 8}, "leaves activations in float: give weight_bits alone"),
        ({"weight_bits": 32}, "nothing would be quantized"),
        ({"activation_observer": "mse"}, "calibrates no activations"),
    ],
)
def test_settings_without_a_meaning(settings: dict[str, object], says: str, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=says):
        quantized(tmp_path / "net.onnx", TARGET, **settings)
    with pytest.raises(SettingError, match="has no groups of weights"):
        quantized(tmp_path / "net.onnx", "onnxruntime-x86", group_size=32)
