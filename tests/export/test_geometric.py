"""Files of logarithmic weights and activations, for NNIE: engines find the level of every value, borders too."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import isobit
from isobit.core.geometric import borders, snap, values
from isobit.core.grid import Geometric
from isobit.engines import ENGINES
from isobit.graph.convert import convert
from isobit.graph.insert import slots
from isobit.integer import Reference
from zoo import small_networks


def difficult(scale: torch.Tensor) -> torch.Tensor:
    """Every border and every value with its neighbours, values of all sizes, 0 and what is far beyond."""
    edge = torch.cat([borders(scale, Geometric(), 8), values(scale, Geometric(), 8)])
    beside = [torch.nextafter(edge, torch.full_like(edge, end)) for end in (-torch.inf, torch.inf)]
    sizes = torch.exp2(torch.linspace(-140, 100, 2001))
    return torch.cat([edge, *beside, sizes, -sizes, torch.tensor([0.0, -0.0, 3e38, -3e38])])


@pytest.mark.parametrize("largest", [0.01, 1.0, 6.3])
def test_every_border(largest: float, tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.ReLU())
    nn.init.constant_(net[0].weight, 1.0)
    data = torch.randn(4, 1, 4, 4)
    data = data / data.abs().max() * largest
    model = isobit.quantize(net, [data], target="nnie")
    path = isobit.export(model, tmp_path / "net.onnx").path
    scale = slots(model)[0].grid().scale
    x = difficult(scale)
    once = torch.relu(snap(x, scale, Geometric(), 8))
    expected = slots(model)[1].grid().fake_quantize(once) if len(slots(model)) > 2 else once
    shaped = x.reshape(1, 1, 1, -1)
    with torch.no_grad():
        assert torch.equal(model(shaped).flatten(), expected)
        assert torch.equal(convert(model)(shaped).flatten(), expected)
    fixed = onnx.load(path)
    for value in (*fixed.graph.input, *fixed.graph.output):
        for dim in list(value.type.tensor_type.shape.dim)[2:]:
            dim.dim_param = f"any{id(dim)}"
    onnx.save(fixed, path)
    for name in ("fake", "onnxruntime", "openvino"):
        engine = ENGINES[name]()
        if engine.missing():
            pytest.skip(engine.missing())
        (y,) = engine.load(path).run([shaped.numpy()])
        np.testing.assert_array_equal(y.reshape(-1), expected.numpy(), err_msg=name)
    (y,) = Reference(path).run([shaped.numpy()]).outputs
    np.testing.assert_array_equal(y.reshape(-1), expected.numpy())


@pytest.mark.parametrize("network", ["residual", "depthwise", "mlp"])
def test_a_network(network: str, tmp_path: Path) -> None:
    net, inputs = small_networks()[network]
    model = isobit.quantize(net, [(inputs,)], target="nnie")
    path = isobit.export(model, tmp_path / "net.onnx").path
    certificate = isobit.verify(path, model, [(inputs,)])
    assert certificate.verdict in ("exact", "bounded")
    assert all(c.largest <= 1e-5 for c in certificate.comparisons)
    file = onnx.load(path)
    onnx.checker.check_model(file, full_check=True)
    weights = [t for t in file.graph.initializer if len(t.dims) > 1]
    assert weights and {t.data_type for t in weights} == {onnx.TensorProto.UINT8}
    with torch.no_grad():
        error = (model(*inputs) - net.eval()(*inputs)).abs().max() / net(*inputs).abs().max()
    assert float(error) < 0.1
