"""Quantized operators on ONNX Runtime: the integers of the Q/DQ file, one by one, and the ops that compute them."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import isobit
from zoo import small_networks


def outputs(path: Path, inputs: list[np.ndarray]) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found, *_) = session.run(None, dict(zip([i.name for i in session.get_inputs()], inputs, strict=True)))
    assert isinstance(found, np.ndarray)
    return found


@pytest.mark.parametrize("target", ["onnxruntime-x86", "tensorrt", "snpe", "openvino-cpu"])
@pytest.mark.parametrize("network", ["residual", "option_a", "depthwise", "concat", "mlp", "shared"])
def test_the_same_outputs_as_the_qdq_file(network: str, target: str, tmp_path: Path) -> None:
    """To the bit, on 64 inputs."""
    if (network, target) == ("mlp", "openvino-cpu"):
        pytest.skip("ONNX Runtime 1.31 refuses the Q/DQ file too: it moves signed quantizers over a Reshape wrongly")
    net, inputs = small_networks()[network]
    model = isobit.quantize(net, [(inputs,)], target=target)
    isobit.export(model, tmp_path / "qdq.onnx")
    artifact = isobit.export(model, tmp_path / "net.onnx", format="onnx-qoperator")
    onnx.checker.check_model(onnx.load(artifact.path))
    generator = torch.Generator().manual_seed(1)
    more = [torch.randn(64, *x.shape[1:], generator=generator).numpy() for x in inputs]
    np.testing.assert_array_equal(outputs(artifact.path, more), outputs(tmp_path / "qdq.onnx", more))


def test_the_ops_of_a_residual_network(tmp_path: Path) -> None:
    """All are integers for ONNX Runtime's own target; a note names the ops that stay in float for another."""
    net, inputs = small_networks()["residual"]
    model = isobit.quantize(net, [(inputs,)], target="onnxruntime-x86")
    artifact = isobit.export(model, tmp_path / "net.onnx", format="onnx-qoperator")
    kinds = Counter(n.op_type for n in onnx.load(artifact.path).graph.node)
    assert artifact.notes == ()
    assert kinds == {
        "QuantizeLinear": 1, "QLinearConv": 4, "QLinearAdd": 2, "QLinearGlobalAveragePool": 1, "Reshape": 1, "QGemm": 1,
        "DequantizeLinear": 1,
    }  # fmt: skip
    other = isobit.quantize(net, [(inputs,)], target="openvino-cpu")
    assert "conv2, add" in isobit.export(other, tmp_path / "b.onnx", format="onnx-qoperator").notes[0]
