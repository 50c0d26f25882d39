"""Blockwise DequantizeLinear: integers of 4 bits in the file as numpy reads them, and OpenVINO computes the same."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

import isobit
from export.linear_networks import constants, from_bits, quantized, weights_of
from isobit.engines import OpenVino

TARGET = "openvino-weights"
needs_openvino = pytest.mark.skipif(bool(OpenVino().missing()), reason=OpenVino().missing())

KINDS = {
    (4, False): onnx.TensorProto.UINT4,
    (4, True): onnx.TensorProto.INT4,
    (2, False): onnx.TensorProto.UINT4,
    (5, True): onnx.TensorProto.INT8,
    (8, False): onnx.TensorProto.UINT8,
}


def integers(tensor: onnx.TensorProto) -> np.ndarray:
    """The integers of an initializer, from its raw bytes."""
    bits = 4 if tensor.data_type in (onnx.TensorProto.INT4, onnx.TensorProto.UINT4) else 8
    q = from_bits(tensor.raw_data, bits)[: int(np.prod(tensor.dims))].reshape(tuple(tensor.dims))
    signed = tensor.data_type in (onnx.TensorProto.INT4, onnx.TensorProto.INT8)
    return q - (1 << bits) * (signed & (q >= 1 << (bits - 1)))


@pytest.mark.parametrize(("bits", "symmetric"), KINDS)
def test_the_file_holds_the_weights(bits: int, symmetric: bool, tmp_path: Path) -> None:
    model, x, file = quantized(tmp_path / "net.onnx", TARGET, bits=bits, symmetric_weights=symmetric)
    expected, stored = weights_of(model), constants(file)
    found = [node for node in file.graph.node if node.op_type == "DequantizeLinear"]
    assert len(found) == 3
    for node, (_, w) in zip(found, expected.items(), strict=True):
        assert onnx.helper.get_node_attr_value(node, "block_size") == 32
        q, scale = stored[node.input[0]], onnx.numpy_helper.to_array(stored[node.input[1]])
        assert q.data_type == KINDS[bits, symmetric]
        assert (len(node.input) < 3) == symmetric
        z = np.zeros(scale.shape, np.int64) if symmetric else integers(stored[node.input[2]])
        centred = integers(q) - np.repeat(z, 32, 1)
        np.testing.assert_array_equal(centred.astype(np.float32) * np.repeat(scale, 32, 1), w)
    (y,) = ReferenceEvaluator(file).run(None, {file.graph.input[0].name: x.numpy()})
    np.testing.assert_allclose(y, model(x).detach().numpy(), rtol=0, atol=1e-5)


@needs_openvino
@pytest.mark.parametrize(("bits", "symmetric"), KINDS)
def test_openvino_keeps_them_compressed_and_computes_the_same(bits: int, symmetric: bool, tmp_path: Path) -> None:
    model, x, _ = quantized(tmp_path / "net.onnx", TARGET, bits=bits, symmetric_weights=symmetric)
    (y,) = OpenVino().load(tmp_path / "net.onnx").run([x.numpy()])
    np.testing.assert_allclose(y, model(x).detach().numpy(), rtol=0, atol=1e-5)
    proof = isobit.verify(tmp_path / "net.onnx", model, [x])
    assert proof.verdict == "exact" or "another order" in proof.cause
    kind = {21: "u4", 22: "i4", 3: "i8", 2: "u8"}[KINDS[bits, symmetric]]
    assert [(k.precision, k.count) for k in proof.kernels if k.name.startswith("FullyConnected")] == [(kind, 3)]


def test_what_takes_more_bits_than_it_has_is_told(tmp_path: Path) -> None:
    model, _, _ = quantized(tmp_path / "net.onnx", TARGET, bits=2)
    (note,) = model.meta["notes"]
    assert note == "weights of 2 bits take 4 or 8 in a file for openvino-weights: the next larger"
    assert quantized(tmp_path / "net.onnx", TARGET, bits=4)[0].meta["notes"] == ()
