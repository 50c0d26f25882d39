"""OpenVINO: sizes that are fixed, constants in sums, and refusals that say why."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

import isobit
from isobit.core.errors import EngineError
from isobit.engines import ENGINES, OpenVino
from isobit.integer import run_reference
from isobit.verify import verify
from zoo import small_networks

pytestmark = pytest.mark.skipif(bool(OpenVino().missing()), reason=OpenVino().missing() or "OpenVINO is there")


@pytest.mark.parametrize("name", ["openvino", "openvino-fixed"])
@pytest.mark.parametrize("target", ["openvino-cpu", "onnxruntime-x86"])
def test_a_vision_transformer_is_right(target: str, name: str, tmp_path: Path) -> None:
    """A file that reads the batch from the sizes is up to 48 levels off in the patches, for inputs of any size."""
    net, _ = small_networks()["vit"]
    x = torch.rand(32, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    path = isobit.export(isobit.quantize(net.eval(), [x], target=target), tmp_path / "net.onnx").path
    engine = ENGINES[name]()
    assert engine.name == name
    certificate = verify(path, None, [x[:8], x[8:11]], engine=engine)
    assert certificate.verdict in ("exact", "bounded"), certificate.cause
    session, reference = engine.load(path), run_reference(path, [x.numpy()], engine.arithmetic)
    for size in (1, 8, 3, 8):  # more sizes than stay compiled
        (y,) = session.run([x[:size].numpy()])
        assert np.abs(y - reference.outputs[0][:size]).max() < 0.05 * np.abs(y).max()


def test_a_sum_with_constant_embeddings_is_taken(tmp_path: Path) -> None:
    net, (ids, mask) = small_networks()["bert"]
    path = isobit.export(
        isobit.quantize(net.eval(), [((ids, mask),)], target="openvino-cpu"), tmp_path / "net.onnx"
    ).path
    assert OpenVino().load(path).run([ids.numpy(), mask.numpy()])[0].shape[0] == len(ids)


def test_a_refusal_says_what_openvino_says(tmp_path: Path) -> None:
    """Not where in its source: its texts begin with that."""
    node = helper.make_node("NoSuchOp", ["x"], ["y"], domain="com.example")
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2]) for name in "xy"]
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.example", 1)]
    graph = helper.make_graph([node], "g", values[:1], values[1:])
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "net.onnx")
    with pytest.raises(EngineError) as raised:
        OpenVino().load(tmp_path / "net.onnx")
    assert "OpenVINO refuses" in str(raised.value) and "Exception from" not in str(raised.value)
