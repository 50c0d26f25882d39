"""GPTQ: equal to the rule column by column with explicit inverses, no worse than nearest, and it resumes."""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

import isobit
from isobit.algorithms import gptq as module
from isobit.algorithms.calibration import finish
from isobit.algorithms.gptq import Gptq, proxy_loss, round_columns
from isobit.algorithms.layer_columns import input_columns, weight_matrix, weight_of_matrix
from isobit.analysis.accuracy import accuracy
from isobit.benchmark.data.digits import read_digits
from isobit.benchmark.digits_training import train_digits
from isobit.core.errors import ArtifactError, SettingError, UnsupportedError
from isobit.core.granularity import PerGroup
from isobit.graph.convert import convert, hash_integers
from isobit.targets import TARGETS
from zoo import small_networks

STEP = 0.37


def on_grid(w: Tensor, _: Tensor) -> Tensor:
    return (w / STEP).round().clamp(-4, 3) * STEP


def problem(groups: int = 1, rows: int = 5, columns: int = 13, samples: int = 40) -> tuple[Tensor, Tensor]:
    """Weights, and the Hessian of inputs that depend on each other."""
    generator = torch.Generator().manual_seed(3)
    mixing = torch.randn(groups, columns, columns, generator=generator, dtype=torch.float64)
    x = mixing @ torch.randn(groups, columns, samples, generator=generator, dtype=torch.float64)
    return torch.randn(groups, rows, columns, generator=generator, dtype=torch.float64) * 0.6, 2 * x @ x.mT


def by_elimination(weight: np.ndarray, hessian: np.ndarray, damping: float, *, ordered: bool) -> np.ndarray:
    """Optimal brain surgery in a fixed order: after each column the inverse over those left, computed anew."""
    damped = hessian + damping * np.diag(hessian).mean() * np.eye(len(hessian))
    order = np.argsort(-np.diag(hessian), kind="stable") if ordered else np.arange(len(hessian))
    w, result = weight.copy(), np.zeros_like(weight)
    left = list(order)
    while left:
        inverse = np.linalg.inv(damped[np.ix_(left, left)])
        i = left[0]
        result[:, i] = np.clip(np.round(w[:, i] / STEP), -4, 3) * STEP
        w[:, left] -= np.outer((w[:, i] - result[:, i]) / inverse[0, 0], inverse[0])
        left = left[1:]
    return result


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("block_size", [1, 4, 13, 128])
def test_is_the_elimination_of_columns_one_by_one(ordered: bool, block_size: int) -> None:
    weight, hessian = problem(groups=2)
    found = round_columns(weight, hessian, on_grid, damping=0.01, ordered=ordered, block_size=block_size)
    for g in range(2):
        expected = by_elimination(weight[g].numpy(), hessian[g].numpy(), 0.01, ordered=ordered)
        np.testing.assert_allclose(found[g].numpy(), expected, atol=1e-12)
    assert proxy_loss(weight - found, hessian) < 0.8 * proxy_loss(weight - on_grid(weight, weight), hessian)


def test_the_loss_is_that_of_the_output() -> None:
    x = np.random.default_rng(0).normal(size=(7, 30))
    error = np.random.default_rng(1).normal(size=(3, 7))
    found = proxy_loss(torch.tensor(error)[None], torch.tensor(x @ x.T)[None])
    assert found == pytest.approx(((error @ x) ** 2).sum())


@pytest.mark.parametrize("dead", [0, 3, 13])
def test_independent_and_dead_inputs_give_rounding_to_nearest(dead: int) -> None:
    weight, _ = problem()
    diagonal = torch.linspace(0.1, 9.0, 13, dtype=torch.float64)
    diagonal[:dead] = 0
    found = round_columns(weight, torch.diag(diagonal)[None], on_grid, damping=0.01, ordered=True, block_size=4)
    assert torch.equal(found, on_grid(weight, weight))


LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "linear": (nn.Linear(4, 5), (2, 3, 4)),
    "conv": (nn.Conv2d(4, 6, (3, 2), stride=(2, 1), dilation=(1, 2), padding=1, groups=2), (2, 4, 9, 11)),
    "depthwise": (nn.Conv2d(4, 8, 3, groups=4), (2, 4, 5, 5)),
    "conv 1d, circular": (nn.Conv1d(4, 4, 3, padding="same", padding_mode="circular"), (2, 4, 7)),
    "conv 3d": (nn.Conv3d(2, 4, 2), (2, 2, 4, 5, 6)),
    "transposed": (
        nn.ConvTranspose2d(4, 6, 3, groups=2, stride=2, dilation=2, padding=1, output_padding=1),
        (2, 4, 5, 6),
    ),
    "transposed, cropped": (nn.ConvTranspose2d(4, 6, 2, padding=2), (2, 4, 5, 6)),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer_is_the_product_of_its_weight_and_its_columns(kind: str) -> None:
    layer, shape = LAYERS[kind]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = layer(x).movedim(-1 if isinstance(layer, nn.Linear) else 1, 0).flatten(1)
        matrix = weight_matrix(layer, layer.weight)
        found = (matrix @ input_columns(layer, x)).flatten(0, 1) + layer.bias[:, None]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(weight_of_matrix(layer, matrix, layer.weight.shape), layer.weight)


def calibrated(network: str = "depthwise", **settings: object) -> tuple[fx.GraphModule, list[Tensor]]:
    net, (x,) = small_networks()[network]
    generator = torch.Generator().manual_seed(1)
    data = [torch.randn(24, *x.shape[1:], generator=generator) for _ in range(3)]
    chosen = {"target": "openvino-cpu", "bits": 4, "weight_observer": "mse"} | settings
    model = isobit.prepare(net, x, **chosen)
    isobit.calibrate(model, data)
    return model, data


def integers_of(model: fx.GraphModule) -> str:
    model = copy.deepcopy(model)
    finish(model)
    return hash_integers(convert(model))


@pytest.mark.parametrize("target", ["openvino-cpu", "snpe", "ascend"])
@pytest.mark.parametrize("network", ["depthwise", "convolution_1d", "vit"])
def test_no_layer_is_worse_and_weights_stay_on_the_calibrated_grid(network: str, target: str) -> None:
    model, data = calibrated(network, target=target)
    grids = {name: layer.weight_slot.grid() for name, layer in model.named_modules() if hasattr(layer, "weight_slot")}
    found = Gptq().apply(model, data)
    assert sum(r.learned < r.nearest for r in found) > len(found) / 2
    for record in found:
        (name,) = record.layers
        layer = model.get_submodule(name)
        now, then = layer.weight_slot.grid(), grids[name]
        assert torch.equal(now.scale, then.scale)
        if record.learned < record.nearest:
            assert torch.equal(layer.weight_slot(layer.weight), layer.weight)
            assert layer.weight_slot.original is not None
        else:
            assert layer.weight_slot.original is None


def test_the_record_is_the_noise_of_the_first_layer_by_hand() -> None:
    """The inputs of the first layer are the quantized samples themselves."""
    model, data = calibrated("mlp")
    before, name = copy.deepcopy(model), "up"
    record = Gptq().apply(model, data)[0]
    assert record.layers == (name,)
    inputs: list[Tensor] = []
    model.get_submodule(name).register_forward_pre_hook(lambda _, x: inputs.append(x[0].detach()))
    with torch.no_grad():
        model(torch.cat(data))
        x = inputs[0].double().flatten(0, -2)
        exact = before.get_submodule(name).weight.double()
        signal = (x @ exact.T).square().sum()
        for m, expected in ((before, record.nearest), (model, record.learned)):
            layer = m.get_submodule(name)
            noise = (x @ (layer.weight_slot(layer.weight).double() - exact).T).square().sum()
            assert float(noise / signal) == pytest.approx(expected, rel=1e-5)


def test_groups_of_a_row_have_scales_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    profile = TARGETS["openvino-cpu"]
    grouped = replace(profile, name="grouped", weight=replace(profile.weight, granularity=PerGroup(1, 4)))
    monkeypatch.setitem(TARGETS, "grouped", grouped)
    model, data = calibrated("mlp", target="grouped")
    found = {r.name: r for r in Gptq().apply(model, data)}
    assert found["down"].learned < found["down"].nearest
    layer = model.get_submodule("down")
    assert layer.weight_slot.grid().scale.shape == (12, 6)
    assert torch.equal(layer.weight_slot(layer.weight), layer.weight)


def test_an_interrupted_run_goes_on_to_the_same_integers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, data = calibrated()
    records = Gptq().apply(whole, data, seed=0)
    original, calls, path = module.round_columns, [], tmp_path / "unfinished"

    def dies(*arguments: Tensor, **settings: object) -> Tensor:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*arguments, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "round_columns", dies)
    broken, data = calibrated()
    with pytest.raises(KeyboardInterrupt):
        Gptq().apply(broken, data, checkpoint=path)
    resumed, data = calibrated()
    assert Gptq().apply(resumed, data, seed=5, checkpoint=path) == records
    assert len(calls) == len(records) + 1
    assert integers_of(resumed) == integers_of(whole)
    other, data = calibrated()
    with pytest.raises(ArtifactError, match="left by another quantization"):
        Gptq(damping=0.02).apply(other, data, checkpoint=path)


@pytest.mark.parametrize("settings", [{"damping": 0.0}, {"damping": -1.0}, {"block_size": 0}])
def test_settings_that_cannot_be(settings: dict[str, float]) -> None:
    with pytest.raises(SettingError):
        Gptq(**settings)  # type: ignore[arg-type]


def test_quantizers_without_even_steps_are_refused_by_name() -> None:
    net, (x,) = small_networks()["residual"]
    with pytest.raises(UnsupportedError, match="conv1: GPTQ rounds weights to fixed, even steps"):
        isobit.quantize(net, [x], target="openvino-cpu", bits=4, weight_quantizer="lsq", reconstruction="gptq")


def test_two_bits_of_a_trained_network_gain_accuracy_also_with_corrected_biases(tmp_path: Path) -> None:
    net = train_digits(epochs=8)[0]
    data, test = [x for x, _ in read_digits("train").batched(64)][:4], list(read_digits("test").batched(150))[:2]
    right, model = {}, None
    for name, corrects in ((None, False), ("gptq", False), ("gptq", True)):
        model = isobit.quantize(
            net, data, target="onnxruntime-x86", weight_bits=2, weight_observer="mse", reconstruction=name,
            bias_correction=corrects,
        )  # fmt: skip
        right[name, corrects] = accuracy(model, test)[0]
    assert right["gptq", False] > right[None, False]
    assert right["gptq", True] > right[None, False]
    path = isobit.export(model, tmp_path / "net.onnx").path
    assert isobit.verify(path, model, test[:1]).verdict == "exact"
