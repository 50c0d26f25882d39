"""OpenVINO's IR on OpenVINO: the same integers and outputs as the ONNX file, from the engine's own kernels."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import isobit
from isobit.core.errors import UnsupportedError
from isobit.engines import ENGINES
from isobit.export.openvino_ir import OpenVinoIr
from isobit.graph.convert import convert
from vendor import quantized
from zoo import small_networks

openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install 'isobit[openvino]'")
SETTINGS = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1, "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}


def compiled(path: Path) -> Any:
    return openvino.Core().compile_model(openvino.Core().read_model(path), "CPU", SETTINGS)


@pytest.mark.parametrize("network", ["residual", "depthwise", "mlp", "concat"])
def test_outputs_equal_those_of_the_onnx_file(network: str, tmp_path: Path) -> None:
    """On one engine, to float32's precision; one step of any tensor inside would show as far more."""
    found = quantized(network, "openvino")
    isobit.export(found.model, tmp_path / "net.onnx")
    OpenVinoIr().export(found.model, tmp_path / "net.xml", example=found.inputs)
    inputs = [x.numpy() for x in found.inputs]
    (expected,) = ENGINES["openvino"]().load(tmp_path / "net.onnx").run(inputs)
    result = compiled(tmp_path / "net.xml")(inputs)[0]
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-6 * np.abs(expected).max())
    simulated = convert(found.model)(*found.inputs).numpy()
    np.testing.assert_array_equal(result.argmax(-1), simulated.argmax(-1))


def test_convolutions_run_on_bytes(tmp_path: Path) -> None:
    """Every convolution and matrix product of the residual network, by the runtime model."""
    found = quantized("residual", "openvino")
    OpenVinoIr().export(found.model, tmp_path / "net.xml", example=found.inputs)
    kinds = []
    for op in compiled(tmp_path / "net.xml").get_runtime_model().get_ordered_ops():
        info = {k: str(v.astype(str)) for k, v in op.get_rt_info().items()}
        if info.get("layerType") in ("Convolution", "FullyConnected", "MatMul"):
            kinds.append((info["layerType"], info["runtimePrecision"]))
    assert len(kinds) == 5
    assert {precision for _, precision in kinds} <= {"u8", "i8"}


def test_four_bits_and_metadata(tmp_path: Path) -> None:
    """Weights of 4 bits with zero points become signed bytes; the file says where it is from."""
    net, inputs = small_networks()["residual"]
    model = isobit.quantize(net, [(inputs,)], target="openvino-cpu", bits=4)
    artifact = isobit.export(model, tmp_path / "net.xml", format="openvino")
    read = OpenVinoIr().read_back(artifact.path)
    assert {e.bits for e in read.activations.values()} == {4, 8}
    held = openvino.Core().read_model(artifact.path).get_rt_info(["isobit", "integers_sha256"]).astype(str)
    assert held == artifact.integers_sha256


def test_a_residual_in_float_is_refused(tmp_path: Path) -> None:
    found = quantized("residual", "ascend")
    with pytest.raises(UnsupportedError, match="is read in float too, as the target ascend places it"):
        OpenVinoIr().export(found.model, tmp_path / "net.xml", example=found.inputs)
