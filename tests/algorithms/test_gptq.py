"""GPTQ: the rule column by column with explicit inverses, least squares by numpy, no worse than nearest, it resumes."""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

import isobit
from isobit.algorithms import gptq as module
from isobit.algorithms.activation_cache import cached_inputs
from isobit.algorithms.calibration import finish
from isobit.algorithms.gptq import Gptq, round_columns
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


def by_elimination(weight: np.ndarray, hessian: np.ndarray, *, ordered: bool, step: float = STEP) -> np.ndarray:
    """Optimal brain surgery in a fixed order: after each column the inverse over those left, computed anew."""
    order = np.argsort(-np.diag(hessian), kind="stable") if ordered else np.arange(len(hessian))
    w, result = weight.copy(), np.zeros_like(weight)
    left = list(order)
    while left:
        inverse = np.linalg.inv(hessian[np.ix_(left, left)])
        i = left[0]
        result[:, i] = np.clip(np.round(w[:, i] / step), -4, 3) * step
        w[:, left] -= np.outer((w[:, i] - result[:, i]) / inverse[0, 0], inverse[0])
        left = left[1:]
    return result


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("block_size", [1, 4, 13, 128])
def test_is_the_elimination_of_columns_one_by_one(ordered: bool, block_size: int) -> None:
    weight, hessian = problem(groups=2)
    found = round_columns(weight, hessian, on_grid, ordered=ordered, block_size=block_size)
    for g in range(2):
        expected = by_elimination(weight[g].numpy(), hessian[g].numpy(), ordered=ordered)
        np.testing.assert_allclose(found[g].numpy(), expected, atol=1e-12)
    losses = [float(((e @ hessian) * e).sum()) for e in (weight - found, weight - on_grid(weight, weight))]
    assert losses[0] < 0.8 * losses[1]


@pytest.mark.parametrize("alike", [0, 3, 13])
def test_independent_inputs_give_rounding_to_nearest(alike: int) -> None:
    weight, _ = problem()
    diagonal = torch.linspace(0.1, 9.0, 13, dtype=torch.float64)
    diagonal[:alike] = 2.0
    found = round_columns(weight, torch.diag(diagonal)[None], on_grid, ordered=True, block_size=4)
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


@pytest.mark.parametrize("kind", LAYERS)
def test_some_columns_are_some_of_all(kind: str) -> None:
    layer, shape = LAYERS[kind]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        result = layer(x)
    every = input_columns(layer, x).unflatten(-1, (-1, *result.shape[2:]) if result.dim() > 3 else (-1,))
    some = input_columns(layer, x, every=2)
    if isinstance(layer, nn.Linear):
        expected = input_columns(layer, x)[..., ::2]
    elif result.dim() == 3:
        expected = input_columns(layer, x).unflatten(-1, (-1, result.shape[2]))[..., ::2].flatten(2)
    else:
        axes = (slice(None), slice(None), slice(None), *(slice(None, None, 2) for _ in result.shape[2:]))
        expected = every[axes].flatten(2)
    assert torch.equal(some, expected)


@pytest.mark.parametrize("target", ["openvino-cpu", "snpe", "ascend"])
@pytest.mark.parametrize("network", ["depthwise", "convolution_1d", "vit"])
def test_no_layer_is_worse_and_weights_are_on_a_grid_whose_scales_are_multiples(network: str, target: str) -> None:
    model, data = calibrated(network, target=target)
    grids = {name: layer.weight_slot.grid() for name, layer in model.named_modules() if hasattr(layer, "weight_slot")}
    found = Gptq().apply(model, data)
    assert sum(r.learned < r.nearest for r in found) > len(found) / 2
    multiples = torch.tensor((1.0, *Gptq().factors))
    changed = 0
    for record in found:
        (name,) = record.layers
        layer = model.get_submodule(name)
        now, then = layer.weight_slot.grid(), grids[name]
        factor = (now.scale / then.scale).flatten()
        assert float((factor[:, None] - multiples).abs().amin(1).max()) < 1e-6
        changed += int((factor != 1).any())
        if record.learned < record.nearest:
            assert torch.equal(layer.weight_slot(layer.weight), layer.weight)
            assert layer.weight_slot.original is not None
        else:
            assert layer.weight_slot.original is None
            assert torch.equal(now.scale, then.scale)
    assert changed > 0 or (network, target) != ("depthwise", "openvino-cpu")


def seen_by(model: fx.GraphModule, name: str, data: list[Tensor]) -> np.ndarray:
    """What a linear layer reads, (samples, features), float64."""
    inputs: list[Tensor] = []
    handle = model.get_submodule(name).register_forward_pre_hook(lambda _, x: inputs.append(x[0].detach()))
    with torch.no_grad():
        model(torch.cat(data))
    handle.remove()
    return np.asarray(inputs[0].double().flatten(0, -2))


@pytest.mark.parametrize("asymmetric", [True, False])
def test_records_are_the_noise_of_the_output_by_hand(asymmetric: bool) -> None:
    net, _ = small_networks()["mlp"]
    model, data = calibrated("mlp")
    before, name = copy.deepcopy(model), "down"
    record = {r.name: r for r in Gptq(asymmetric=asymmetric, samples=512).apply(model, data)}[name]
    x_hat = seen_by(model, name, data)
    x = seen_by(net.eval(), name, data) if asymmetric else x_hat
    exact = before.get_submodule(name).weight.double().detach().numpy()
    power = np.square(x @ exact.T).sum()
    for m, expected in ((before, record.nearest), (model, record.learned)):
        layer = m.get_submodule(name)
        weight = layer.weight_slot(layer.weight).double().detach().numpy()
        assert np.square(x_hat @ weight.T - x @ exact.T).sum() / power == pytest.approx(expected, rel=1e-4)


def test_the_moments_give_least_squares_and_the_ridge_draws_to_the_weight() -> None:
    """With 8 bits rounding takes little away: what is left is the minimum that numpy finds."""
    net, _ = small_networks()["mlp"]
    model, data = calibrated("mlp", weight_bits=8, activation_bits=4, bits=None)
    weight = model.get_submodule("down").weight.double().detach().numpy()
    Gptq(damping=0.3, samples=512).apply(model, data)
    x_hat, x = seen_by(model, "down", data), seen_by(net.eval(), "down", data)
    ridge = 0.3 * np.square(x_hat).mean(0).mean() * len(x_hat)
    system = np.vstack([x_hat, np.sqrt(ridge) * np.eye(x_hat.shape[1])])
    aim = np.vstack([x @ weight.T, np.sqrt(ridge) * weight.T])
    expected = np.linalg.lstsq(system, aim, rcond=None)[0].T
    layer = model.get_submodule("down")
    found = layer.weight_slot(layer.weight).double().detach().numpy()
    assert np.median(np.abs(expected - weight)) > 3 * np.median(np.abs(found - expected))
    losses = [np.square(system @ w.T - aim).sum() for w in (expected, found, weight)]
    assert losses[0] < losses[1] < losses[0] + 0.1 * (losses[2] - losses[0])


def test_the_factor_of_each_scale_is_the_best_by_brute_force() -> None:
    model, data = calibrated("mlp", layer_bits={"up": 4})
    name, factors = "up", (0.6, 0.8, 1.2)
    layer = model.get_submodule(name)
    grid, weight = layer.weight_slot.grid(), layer.weight.double().detach()
    settings = Gptq(factors=factors, ordered=False, damping=0.4)
    before = copy.deepcopy(model)
    settings.apply(model, data)
    x_hat, x = seen_by(before, name, data), seen_by(small_networks()["mlp"][0].eval(), name, data)
    own = x_hat.T @ x_hat
    hessian = own + np.eye(len(own)) * settings.damping * np.diag(own).mean()
    aim = (weight.numpy() @ (x.T @ x_hat + np.eye(len(own)) * settings.damping * np.diag(own).mean())) @ np.linalg.inv(
        hessian
    )
    offset = grid.zero_point.numpy()
    for row in range(len(aim)):
        losses = {}
        for factor in (1.0, *factors):
            step = float(grid.scale[row]) * factor
            low, high = (np.array([grid.scheme.quant_min, grid.scheme.quant_max]) - offset[row]) * step
            found = _eliminated(aim[row], hessian, step, low, high)
            losses[factor] = (aim[row] - found) @ hessian @ (aim[row] - found)
        best = min(losses, key=lambda f: losses[f])
        taken = float(model.get_submodule(name).weight_slot.grid().scale[row] / grid.scale[row])
        assert losses[min(losses, key=lambda f: abs(f - taken))] <= losses[best] * 1.001


def _eliminated(row: np.ndarray, hessian: np.ndarray, step: float, low: float, high: float) -> np.ndarray:
    w, result = row.copy(), np.zeros_like(row)
    for i in range(len(w)):
        inverse = np.linalg.inv(hessian[i:, i:])
        result[i] = np.clip(np.round(w[i] / step) * step, low, high)
        w[i:] -= (w[i] - result[i]) / inverse[0, 0] * inverse[0]
    return result


def test_more_samples_than_asked_for_are_thinned_out_evenly() -> None:
    model, _ = calibrated("mlp")
    shape = small_networks()["mlp"][1][0].shape[1:]
    data = [
        torch.full((n, *shape), 1.0) * torch.arange(i, i + n).reshape(-1, *[1] * len(shape))
        for i, n in ((0, 7), (7, 13))
    ]
    cache, _ = cached_inputs(model, data, 1 << 20, most=5)
    [(_, tensor)] = cache.tensors()
    assert cache.samples == 5
    assert tensor.flatten(1)[:, 0].tolist() == [0, 4, 8, 12, 16]
    assert cached_inputs(model, data, 1 << 20, most=20)[0].samples == 20


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
    original, calls, path = module.Gptq._round, [], tmp_path / "unfinished"

    def dies(*arguments: Tensor, **settings: object) -> Tensor:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*arguments, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(module.Gptq, "_round", dies)
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


def test_a_weight_too_wide_is_rounded_to_nearest_and_a_note_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_COLUMNS", 20)
    model, data = calibrated("mlp")
    before = model.get_submodule("down").weight.detach().clone()
    record = {r.name: r for r in Gptq().apply(model, data)}["down"]
    assert 0 < record.nearest == record.learned
    assert torch.equal(model.get_submodule("down").weight, before)
    assert any("down: its weight is rounded to nearest" in note for note in model.meta["notes"])


@pytest.mark.parametrize(
    "settings",
    [{"damping": 0.0}, {"damping": -1.0}, {"block_size": 0}, {"samples": 0}, {"ratio": 0}, {"factors": (1.0, 0.0)}],
)
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
    for name, corrects in (("none", False), ("gptq", False), ("gptq", True)):
        model = isobit.quantize(
            net, data, target="onnxruntime-x86", weight_bits=2, weight_observer="mse", reconstruction=name,
            bias_correction=corrects,
        )  # fmt: skip
        right[name, corrects] = accuracy(model, test)[0]
    assert right["gptq", False] > right["none", False]
    assert right["gptq", True] > right["none", False]
    path = isobit.export(model, tmp_path / "net.onnx").path
    assert isobit.verify(path, model, test[:1]).verdict == "exact"
