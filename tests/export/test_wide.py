"""Files with integers of 16 bits: what they hold, what ONNX Runtime and the target's own arithmetic make of them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import isobit
from isobit.core.errors import SettingError
from isobit.core.granularity import PerChannel
from isobit.graph.convert import convert
from isobit.graph.deployed import bias_step
from isobit.graph.insert import preparation, slots
from isobit.integer import Reference
from isobit.integer.bounds import accumulating, overflow_risks
from isobit.targets import TARGETS
from zoo import small_networks

WIDE = [name for name, profile in TARGETS.items() if 16 in profile.widths and profile.ranges == "calibrated"]


def test_which_targets_have_16_bits() -> None:
    assert WIDE == ["qnn-htp", "ceva", "wuqi", "sigmastar", "ambarella"]


@pytest.mark.parametrize("target", WIDE)
def test_a_file_of_16_bits(target: str, tmp_path: Path) -> None:
    """Everything has 16 bits in the file; ONNX Runtime computes with floats, and the certificate says so; the target's
    own arithmetic computes with integers, and its results lie within a few of 65,536 steps."""
    net, inputs = small_networks()["residual"]
    model = isobit.quantize(net, [(inputs,)], target=target, bits=16)
    plan = preparation(model).plan
    assert {p.scheme.bits for p in (*plan.activations, *plan.weights)} == {16}
    path = isobit.export(model, tmp_path / "net.onnx").path
    file = onnx.load(path)
    onnx.checker.check_model(file, full_check=True)
    kinds = {t.data_type for t in file.graph.initializer if len(t.dims) > 1}
    assert kinds == {onnx.TensorProto.INT16}

    certificate = isobit.verify(path, model, [(inputs,)], engine="onnxruntime")
    assert certificate.verdict in ("exact", "bounded")
    assert {"conv1", "conv2"} <= set(certificate.float_islands)
    assert certificate.accumulators == 0
    assert "overflow: no integer accumulators exist: every layer sums in float" in str(certificate)

    profile = TARGETS[target]
    reference = Reference(path, profile.arithmetic)
    assert {s.rule for s in reference.plan.steps if s.node.op in ("Conv", "Add", "GlobalAveragePool")} == {"integer"}
    found = reference.run([x.numpy() for x in inputs])
    literal = Reference(path).run([x.numpy() for x in inputs])
    for name, q in found.integers.items():
        assert np.abs(q.astype(np.int64) - literal.integers[name].astype(np.int64)).max() <= 8, name
    assert {"conv1", "linear"} <= set(accumulating(path, profile.arithmetic))
    assert not overflow_risks(path, profile.arithmetic)
    assert overflow_risks(path, replace(profile.arithmetic, accumulator_bits=32))


@pytest.mark.parametrize("target", WIDE)
def test_16_bits_are_closer_to_the_float_network(target: str) -> None:
    net, inputs = small_networks()["residual"]
    with torch.no_grad():
        expected = net.eval()(*inputs)
        errors = {
            bits: float((isobit.quantize(net, [(inputs,)], target=target, bits=bits)(*inputs) - expected).abs().max())
            for bits in (8, 16)
        }
    assert errors[16] < errors[8] / 50


def test_wide_activations_beside_byte_weights(tmp_path: Path) -> None:
    net, inputs = small_networks()["depthwise"]
    model = isobit.quantize(net, [(inputs,)], target="qnn-htp", weight_bits=8, activation_bits=16)
    path = isobit.export(model, tmp_path / "net.onnx").path
    kinds = {t.data_type for t in onnx.load(path).graph.initializer if len(t.dims) > 1}
    assert kinds == {onnx.TensorProto.INT8}
    assert isobit.verify(path, model, [(inputs,)], engine="onnxruntime").verdict in ("exact", "bounded")


def test_one_layer_of_16_bits() -> None:
    net, inputs = small_networks()["residual"]
    model = isobit.quantize(net, [(inputs,)], target="ceva", layer_bits={"conv2": 16})
    assert {w.name: w.scheme.bits for w in preparation(model).plan.weights}["conv2"] == 16
    with pytest.raises(SettingError, match="tensorrt computes with 1 to 8 bits: 'conv2' cannot have 16"):
        isobit.quantize(net, [(inputs,)], target="tensorrt", layer_bits={"conv2": 16})


def test_a_bias_beyond_32_bits_of_fine_steps(tmp_path: Path) -> None:
    """A bias larger than any product: 2^31 steps of s_x · s_w do not hold it, so its step is 2^k of them."""
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Conv2d(2, 2, 1))
    with torch.no_grad():
        net[0].weight.fill_(0.001)
        net[0].bias.copy_(torch.tensor([30.0, -7.0]))
    x = torch.rand(4, 1, 5, 5)
    model = isobit.quantize(net, [x], target="ceva", bits=16)
    layer = convert(model).get_submodule("deployed__0")
    steps = layer.integer.bias_scale / (layer.integer.scale * slots(model)[0].grid().scale)
    assert (steps == steps.round()).all() and (steps.log2() == steps.log2().round()).all() and float(steps.max()) > 1
    torch.testing.assert_close(layer.integer.bias(), torch.tensor([30.0, -7.0]), rtol=2.0**-29, atol=0)
    path = isobit.export(model, tmp_path / "net.onnx").path
    found = Reference(path, TARGETS["ceva"].arithmetic).run([x.numpy()]).outputs[0]
    with torch.no_grad():
        np.testing.assert_allclose(found, net(x).numpy(), atol=2e-3)


def test_bias_steps() -> None:
    step = torch.tensor([2.0**-40, 2.0**-20])
    small, large = torch.tensor([0.0, 1.0]), torch.tensor([1.0, 1.0])
    assert torch.equal(bias_step(small, step, bits=16), step)
    assert torch.equal(bias_step(large, step, bits=8), step)
    assert torch.equal(bias_step(large, step, bits=16), step * 2.0**10)
    assert isinstance(TARGETS["ceva"].weight.granularity, PerChannel)
