"""Bias correction: means come back, against numpy and against the closed form for one linear layer."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import isobit
from isobit.algorithms.bias_correction import BiasCorrection
from isobit.algorithms.calibration import finish
from isobit.core.errors import CalibrationError, SettingError
from isobit.graph.convert import convert, hash_integers
from isobit.graph.insert import slots
from zoo import small_networks


def test_one_linear_layer_gets_the_mean_of_its_input_times_the_error_of_its_weight() -> None:
    """Equation 16: Δb = -(Ŵ - W) E[x], where the input itself is exact."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 4)).eval()
    x = torch.rand(64, 6) + 0.5
    model = isobit.prepare(net, x[:2], target="fbgemm", weight_bits=8, activation_bits=32, layer_bits={"0": (3, 8)})
    isobit.calibrate(model, [x])
    layer = model.get_submodule("0")
    weight, before = layer.weight.detach(), layer.bias.detach().clone()
    (record,) = BiasCorrection().apply(model, [x])
    rounded = layer.weight_slot.grid().fake_quantize(weight)
    expected = -(rounded - weight).double().numpy() @ x.double().numpy().mean(0)
    found = (layer.bias.detach() - before).double().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    assert record.layer == "0"
    assert record.largest == pytest.approx(np.abs(expected).max(), rel=1e-4)
    assert record.mean == pytest.approx(np.abs(expected).mean(), rel=1e-4)


@pytest.mark.parametrize("network", ["residual", "depthwise", "concat", "mlp", "vit"])
def test_every_layer_has_the_mean_of_the_float_network(network: str) -> None:
    """Checked with hooks, on the whole network, at widths where that is not so by itself."""
    net, inputs = small_networks()[network]
    generator = torch.Generator().manual_seed(3)
    data = [(tuple(torch.randn(40, *x.shape[1:], generator=generator) for x in inputs),)]
    model = isobit.prepare(net.eval(), inputs, target="snpe", bits=3, layer_bits={"*": 3})
    isobit.calibrate(model, data)
    means = []
    for corrected in (False, True):
        if corrected:
            found = BiasCorrection().apply(model, data)
        exact = copy.deepcopy(model)
        for slot in slots(exact):
            slot.mode = "float"
        means.append((outputs(model, data), outputs(exact, data)))
    (before, _), (after, _) = means
    original = means[0][1]
    names = {r.layer for r in found}
    assert names
    for name in names:
        assert np.abs(after[name] - original[name]).max() < 1e-4 * (1 + np.abs(original[name]).max())
    assert any(np.abs(before[name] - original[name]).max() > 1e-2 for name in names)


def outputs(model: nn.Module, data: list[tuple[tuple[torch.Tensor, ...]]]) -> dict[str, np.ndarray]:
    """The mean of every layer's output per channel."""
    found: dict[str, np.ndarray] = {}
    hooks = []
    for name, layer in model.named_modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            axis = -1 if isinstance(layer, nn.Linear) else 1

            def keep(_: nn.Module, __: object, y: torch.Tensor, name: str = name, axis: int = axis) -> None:
                found[name] = y.detach().movedim(axis, 0).flatten(1).double().mean(1).numpy()

            hooks.append(layer.register_forward_hook(keep))
    with torch.no_grad():
        model.eval()(*data[0][0])
    for hook in hooks:
        hook.remove()
    return found


def test_the_same_integers_for_any_batches_and_any_limit_of_memory(tmp_path: Path) -> None:
    net, (x,) = small_networks()["residual"]
    x = torch.randn(96, *x.shape[1:], generator=torch.Generator().manual_seed(0))
    hashes = set()
    for limit in (1 << 30, 1000):
        model = isobit.prepare(net.eval(), x[:2], target="snpe", bits=4)
        isobit.calibrate(model, [x])
        BiasCorrection(memory_limit=limit).apply(model, list(x.split(32)))
        finish(model)
        hashes.add(hash_integers(convert(model)))
    assert len(hashes) == 1
    quantized = isobit.quantize(net, [x], target="onnxruntime-x86", bias_correction=True)
    path = isobit.export(quantized, tmp_path / "net.onnx").path
    assert isobit.verify(path, quantized, [x]).verdict == "exact"
    assert {r.layer for r in quantized.meta["bias_correction"]} == {"conv1", "conv2", "conv3", "shortcut", "linear"}


def test_a_layer_without_a_bias_gets_one() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3, bias=False)).eval()
    x = torch.rand(32, 3, 6, 6)
    model = isobit.quantize(net, [x], target="onnxruntime-x86", layer_bits={"0": 2}, bias_correction=True)
    assert float(model.get_submodule("0").bias.detach().abs().max()) > 0


def test_data_for_another_network_is_refused() -> None:
    net, (x,) = small_networks()["residual"]
    model = isobit.prepare(net.eval(), x, target="snpe")
    isobit.calibrate(model, [torch.randn(8, *x.shape[1:])])
    with pytest.raises(CalibrationError, match="takes 1 inputs, the data has 2"):
        BiasCorrection().apply(model, [((x, x),)])


def test_means_inside_of_blocks_that_learned_as_a_whole_are_left_alone() -> None:
    net, (x,) = small_networks()["residual"]
    with pytest.raises(SettingError, match="bias_correction moves the means inside of blocks"):
        isobit.quantize(net, [x], target="snpe", bias_correction=True, reconstruction="brecq")
