"""Reconstruction: it gains, it is the same each time, it resumes, and it says what it cannot do."""

import copy
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import isobit
from isobit.algorithms import RECONSTRUCTIONS
from isobit.algorithms import reconstruction as module
from isobit.algorithms.activation_cache import ActivationCache, execute
from isobit.algorithms.calibration import finish
from isobit.algorithms.fisher import fisher
from isobit.algorithms.reconstruction import Reconstruction, channel_axis, distance, reconstruct
from isobit.benchmark.data.digits import read_digits
from isobit.benchmark.digits_training import train_digits
from isobit.core.errors import ArtifactError, SettingError, UnsupportedError
from isobit.graph.convert import convert, hash_integers
from isobit.graph.segments import segments
from zoo import small_networks


def calibrated(network: str = "residual", *, bits: int = 4, **settings: object) -> tuple[fx.GraphModule, list[Tensor]]:
    net, (x,) = small_networks()[network]
    generator = torch.Generator().manual_seed(1)
    data = [torch.randn(24, *x.shape[1:], generator=generator) for _ in range(3)]
    model = isobit.prepare(
        net, x, target="openvino-cpu", bits=bits, weight_observer="mse", activation_observer="mse", **settings
    )
    isobit.calibrate(model, data)
    return model, data


def integers_of(model: fx.GraphModule) -> str:
    model = copy.deepcopy(model)
    finish(model)
    return hash_integers(convert(model))


LEARNED = ("adaround", "brecq", "qdrop")
SETTINGS = {name: RECONSTRUCTIONS[name](iterations=40).reconstruction(seed=0) for name in LEARNED}


@pytest.fixture(scope="module")
def digits() -> nn.Module:
    return train_digits()[0]


@pytest.mark.parametrize("name", SETTINGS)
def test_every_segment_is_at_least_as_good_and_most_are_better(name: str, digits: nn.Module) -> None:
    data = [x for x, _ in read_digits("train").batched(64)][:4]
    settings = RECONSTRUCTIONS[name](iterations=150).reconstruction(seed=0)
    models = []
    for _ in range(2):
        models.append(isobit.prepare(digits, data[0][:2], target="openvino-cpu", bits=3, weight_observer="mse"))
        isobit.calibrate(models[-1], data)
    before, model = models
    found = reconstruct(model, data, settings)
    assert [r.name for r in found] == [p.name for p in segments(model, settings.unit)]
    assert sum(r.learned < r.nearest for r in found) > len(found) / 2
    x = torch.cat([x for x, _ in read_digits("test").batched(150)])
    with torch.no_grad():
        errors = [float((m.eval()(x) - digits(x)).square().mean()) for m in (model, before)]
    assert errors[0] < 0.8 * errors[1]


def test_the_weights_are_on_their_grids_and_float_mode_shows_the_old_ones() -> None:
    model, data = calibrated()
    before = {k: v.clone() for k, v in model.state_dict().items() if k.endswith("weight")}
    reconstruct(model, data, SETTINGS["brecq"])
    changed = 0
    for name, layer in model.named_modules():
        slot = getattr(layer, "weight_slot", None)
        if slot is None or slot.original is None:
            continue
        weight, old = layer.weight, before[f"{name}.weight"]
        assert not torch.equal(weight, old)
        torch.testing.assert_close(slot(weight), weight, rtol=1e-6, atol=0)
        step = slot.grid().scale.reshape(-1, *[1] * (weight.dim() - 1))
        inside = (old / step > slot.grid().scheme.quant_min) & (old / step < slot.grid().scheme.quant_max)
        assert float(((weight - old).detach().abs() / step)[inside].max()) < 1 + 1e-5  # up or down, never further
        changed += int((slot.grid().fake_quantize(old) != weight).sum())
        slot.mode = "float"
        assert torch.equal(slot(weight), old)
    assert changed > 0


@pytest.mark.parametrize("name", SETTINGS)
def test_the_same_seed_gives_the_same_integers_and_another_one_others(name: str) -> None:
    hashes = []
    for seed in (0, 0, 1):
        model, data = calibrated()
        torch.manual_seed(len(hashes))
        reconstruct(model, data, RECONSTRUCTIONS[name](iterations=40).reconstruction(seed=seed))
        hashes.append(integers_of(model))
    assert hashes[0] == hashes[1] != hashes[2]


def test_an_interrupted_run_goes_on_to_the_same_integers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, data = calibrated()
    records = reconstruct(whole, data, SETTINGS["qdrop"])
    assert len(records) > 2
    path, original = tmp_path / "unfinished", module._reconstruct_one
    calls = itertools.count()

    def dies(*arguments: object) -> object:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "_reconstruct_one", dies)
    broken, data = calibrated()
    with pytest.raises(KeyboardInterrupt):
        reconstruct(broken, data, SETTINGS["qdrop"], checkpoint=path)
    resumed, data = calibrated()
    assert reconstruct(resumed, data, SETTINGS["qdrop"], checkpoint=path) == records
    assert next(calls) == len(records) + 1  # two of them before it died, and none of these again
    assert integers_of(resumed) == integers_of(whole)


@pytest.mark.parametrize("change", ["settings", "data", "weights"])
def test_a_checkpoint_of_another_run_is_refused(change: str, tmp_path: Path) -> None:
    model, data = calibrated()
    reconstruct(model, data, SETTINGS["brecq"], checkpoint=tmp_path / "c")
    other, data = calibrated()
    settings = SETTINGS["adaround"] if change == "settings" else SETTINGS["brecq"]
    if change == "data":
        data[0][0, 0, 0, 0] += 1
    if change == "weights":
        with torch.no_grad():
            next(other.parameters())[0] += 1
    with pytest.raises(ArtifactError, match=r"left by another quantization.*Delete it"):
        reconstruct(other, data, settings, checkpoint=tmp_path / "c")


def test_a_small_limit_of_memory_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    hashes = []
    for limit in (1 << 30, 1000):
        model, data = calibrated()
        reconstruct(model, data, Reconstruction(unit="block", iterations=20, memory_limit=limit))
        hashes.append(integers_of(model))
    assert hashes[0] == hashes[1]
    assert not list(tmp_path.iterdir())


def test_what_exceeds_the_limit_lies_in_files() -> None:
    model, data = calibrated()
    place = next(n for n in model.graph.nodes if n.op == "placeholder")
    for limit, held in ((1 << 30, 72 * 3 * 8 * 8 * 4), (1000, 0)):
        cache = ActivationCache(72, limit)
        for i, x in enumerate(data):
            cache.write(place, 24 * i, 24, x)
        assert cache.bytes_in_memory == held
        index = torch.tensor([3, 71, 30])
        assert torch.equal(cache.batch([place], index)[place], torch.cat(data)[index])


def test_distance_is_a_sum_over_channels_and_a_mean_over_the_rest() -> None:
    generator = np.random.default_rng(0)
    for shape, axis in (((5, 3), 1), ((5, 3, 4, 2), 1), ((5, 7, 3), 2)):
        x, y, w = (generator.normal(size=shape) for _ in range(3))
        expected = (w * (x - y) ** 2).sum(axis).mean()
        assert distance(*map(torch.tensor, (x, y, w)), axis=axis).item() == pytest.approx(expected)


class Tokens(nn.Module):
    """A Conv1d makes channels, a Linear mixes tokens: both results have three axes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv1d(3, 4, 3), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(self.conv(x).relu().transpose(1, 2))
        return y


def test_channels_are_behind_the_samples_or_last_for_tokens() -> None:
    model = isobit.prepare(Tokens().eval(), torch.randn(2, 3, 9), target="openvino-cpu", bits=4)
    conv, linear = segments(model, "layer")
    assert (conv.layers, linear.layers) == (("conv",), ("linear",))
    assert channel_axis(model, conv, torch.zeros(2, 4, 7)) == 1
    assert channel_axis(model, linear, torch.zeros(2, 7, 5)) == 2
    assert channel_axis(model, linear, torch.zeros(2, 5)) == 1


def test_fisher_is_the_squared_gradient_of_the_divergence() -> None:
    """On a network whose rest is one linear layer: ∂L/∂z = (softmax(q) - softmax(p)) W / n, by hand."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    data = [torch.randn(32, 6)]
    model = isobit.prepare(net, data[0][:2], target="openvino-cpu", layer_bits={"0": 2})
    isobit.calibrate(model, data)
    parts = segments(model, "layer")
    (place,) = (n for n in model.graph.nodes if n.op == "placeholder")
    exact, rounded = ActivationCache(32, 1 << 30), ActivationCache(32, 1 << 30)
    for cache in (exact, rounded):
        cache.write(place, 0, 32, data[0])
    with torch.no_grad():
        exact.write(parts[0].result, 0, 32, net[:2](data[0]))
    found = fisher(model, parts[0], exact, rounded)
    with torch.no_grad():
        z = net[:2](data[0])
        z_hat = _first_segment(model, data[0])
        expected_p = F.softmax(net[2](z), 1)
        got = F.softmax(net[2](z_hat), 1)
        gradient = (got - expected_p) @ net[2].weight / 32
    torch.testing.assert_close(found, gradient.square() / gradient.square().mean(), rtol=1e-4, atol=1e-6)


def _first_segment(model: fx.GraphModule, x: Tensor) -> Tensor:
    part = segments(model, "layer")[0]
    found: Tensor = execute(model, part.nodes, {part.inputs[0]: x})[part.result]
    return found


def test_fisher_weighting_is_used_and_needs_logits() -> None:
    hashes = []
    for weighting in ("none", "fisher"):
        model, data = calibrated()
        reconstruct(model, data, RECONSTRUCTIONS["brecq"](iterations=40, weighting=weighting).reconstruction(seed=0))
        hashes.append(integers_of(model))
    assert hashes[0] != hashes[1]
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)).eval()
    data = [torch.randn(8, 3, 8, 8)]
    with pytest.raises(UnsupportedError, match="Fisher weighting needs a network that returns logits"):
        isobit.quantize(
            net, data, target="openvino-cpu", bits=4, reconstruction={"name": "brecq", "weighting": "fisher"}
        )


def test_quantizers_without_even_steps_are_refused_by_name() -> None:
    net, (x,) = small_networks()["residual"]
    with pytest.raises(UnsupportedError, match="conv1: reconstruction learns the rounding of weights"):
        isobit.quantize(net, [x], target="openvino-cpu", bits=4, weight_quantizer="lsq", reconstruction="adaround")


@pytest.mark.parametrize("settings", [{"iterations": 0}, {"batch_size": 0}, {"quantized": 0.0}, {"quantized": 1.5}])
def test_settings_that_cannot_be(settings: dict[str, float]) -> None:
    with pytest.raises(SettingError):
        Reconstruction(unit="block", **settings)  # type: ignore[arg-type]


def test_what_learns_nothing_keeps_the_nearest_rounding_and_says_so() -> None:
    model, data = calibrated(bits=8)
    before = integers_of(model)
    found = reconstruct(model, data, Reconstruction(unit="layer", iterations=1, learning_rate=0.0))
    assert all(r.learned == r.nearest for r in found)
    assert integers_of(model) == before


def test_three_bits_of_a_trained_network_gain_accuracy_and_run_on_the_engine(digits: nn.Module, tmp_path: Path) -> None:
    data, test = [x for x, _ in read_digits("train").batched(64)][:8], list(read_digits("test").batched(150))
    right = {}
    for name in ("none", "adaround"):
        model = isobit.quantize(
            digits, data, target="onnxruntime-x86", bits=3, weight_observer="mse", reconstruction=name
        )
        path = isobit.export(model, tmp_path / f"{name}.onnx").path
        certificate = isobit.verify(path, model, test)
        assert certificate.verdict == "exact"
        counted = {a.execution: a.right for a in certificate.accuracy}
        assert counted["reference"] == next(n for e, n in counted.items() if e.startswith("onnxruntime"))
        right[name] = counted["reference"]
    assert right["adaround"] > right["none"]
