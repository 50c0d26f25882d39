"""Recalibration of batch norm: the averages by their formula, plain and folded, and everything else untouched."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import isobit
from isobit.algorithms.batch_norm import recalibrate_batch_norm
from isobit.algorithms.calibration import Observation, calibrate, finish
from isobit.core.errors import CalibrationError, SettingError
from isobit.core.scheme import Scheme
from isobit.graph.folding import is_folded
from isobit.graph.slots import Slot, give_weight_slot, weight_slot
from isobit.observers import Mse
from isobit.quantizers.slb import Slb


def network() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(6, 4, 3, bias=False),
        nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3),
    )  # fmt: skip
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 2)
            nn.init.normal_(norm.bias)
            norm.running_mean.normal_()  # type: ignore[union-attr]
            norm.running_var.uniform_(0.5, 2)  # type: ignore[union-attr, operator]
    return net


def images(*sizes: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(n, 2, 6, 6, generator=generator) * (i + 1) + i for i, n in enumerate(sizes)]


def averages(outputs: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance of each batch (n, c, h, w), then their averages by size."""
    rows = [y.double().movedim(1, 0).flatten(1) for y in outputs]
    n = torch.tensor([float(r.shape[1]) for r in rows], dtype=torch.float64)
    means = torch.stack([r.sum(1) / r.shape[1] for r in rows])
    variances = torch.stack(
        [((r - m[:, None]) ** 2).sum(1) / (r.shape[1] - 1) for r, m in zip(rows, means, strict=True)]
    )
    return tuple((n[:, None] * value).sum(0) / n.sum() for value in (means, variances))  # type: ignore[return-value]


def normalized(y: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    """A batch normalized by itself."""
    mean = y.mean((0, 2, 3), keepdim=True)
    var = (y - mean).square().mean((0, 2, 3), keepdim=True)
    return (y - mean) / (var + norm.eps).sqrt() * norm.weight[:, None, None] + norm.bias[:, None, None]


def assert_has(norm: nn.Module, wanted: tuple[Tensor, Tensor]) -> None:
    torch.testing.assert_close(norm.running_mean, wanted[0].float(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(norm.running_var, wanted[1].float(), rtol=1e-5, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("batches, used", [(None, 3), (2, 2), (1, 1), (9, 3)])
def test_statistics_are_the_averages_over_the_batches(batches: int | None, used: int) -> None:
    net, data = network(), images(8, 8, 5)
    conv1, norm1, conv2, norm2 = net[0], net[1], net[4], net[5]
    assert isinstance(norm1, nn.BatchNorm2d)
    first = [conv1(x) for x in data[:used]]
    second = [conv2(normalized(y, norm1).relu()) for y in first]  # without dropout
    assert recalibrate_batch_norm(net, [(x, torch.zeros(len(x))) for x in data], batches=batches) == 2
    assert_has(norm1, averages(first))
    assert_has(norm2, averages(second))


def test_everything_else_stays() -> None:
    net = network().train()
    net[1].eval()
    net[5].momentum = None  # type: ignore[assignment]
    net[5].num_batches_tracked.fill_(7)  # type: ignore[operator, union-attr]
    before = {key: value.clone() for key, value in net.state_dict().items()}
    recalibrate_batch_norm(net, images(8))
    changed = {key for key, value in net.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {f"{i}.running_{what}" for i in (1, 5) for what in ("mean", "var")}
    assert [m.training for m in net] == [i != 1 for i in range(9)]
    assert (net[1].momentum, net[5].momentum) == (0.1, None)
    assert not net[1]._forward_pre_hooks


def folded(strategy: int) -> fx.GraphModule:
    """A network whose statistics fit its data, so that calibrated ranges go on to fit."""
    net = network()
    recalibrate_batch_norm(net, images(8, 8, 5))
    names = {"weight_quantizer": "lsq", "activation_quantizer": "lsq"}
    model = isobit.prepare(net, images(8)[0], target="tensorrt", bits=4, bn_fold=strategy, **names)
    calibrate(model, images(8, 8, 5), Observation())
    return model


@torch.no_grad()
@pytest.mark.parametrize("strategy", [1, 2, 3, 4])
def test_folded_layers_count_the_output_of_their_quantized_weight(strategy: int) -> None:
    model, data = folded(strategy), images(8, 8, 5)
    layers = [m for m in model.modules() if is_folded(m)]
    assert len(layers) == 2
    norms, weights, inputs = [], [], [[], []]  # type: ignore[var-annotated]
    for layer, seen in zip(layers, inputs, strict=True):
        f = (layer.norm.weight / (layer.norm.running_var + layer.norm.eps).sqrt())[:, None, None, None]
        slot = weight_slot(layer)
        assert slot is not None
        weights.append((slot.quantizer.eval()(layer.weight * f) / f).detach())
        norms.append(layer.norm)
        layer.norm.running_mean += 0.3
        layer.register_forward_pre_hook(lambda _, x, seen=seen: seen.append(x[0]))
    model.train()
    assert recalibrate_batch_norm(model, data) == 2
    outputs = [
        [F.conv2d(x, w, layer.bias) for x in seen] for layer, w, seen in zip(layers, weights, inputs, strict=True)
    ]
    for norm, mine in zip(norms, outputs, strict=True):
        assert_has(norm, averages(mine))
    assert all(layer.strategy == strategy and layer.synchronized for layer in layers)
    assert all(m.training for m in model.modules())
    between = list(model.get_submodule("activation_slots").children())[1].eval()
    for x, y in zip(inputs[1], outputs[0], strict=True):  # the first norm normalizes by the batch's own statistics
        wanted = between(normalized(y, norms[0]).relu())
        assert (x - wanted).abs().mean() < 1e-3 * wanted.mean()  # a value may be rounded to the other side


@torch.no_grad()
def test_a_folded_network_then_normalizes_its_data() -> None:
    """In eval mode the first layer's output has the mean β and the deviation γ, but for what quantization adds."""
    model, data = folded(4), images(8, 8, 5)
    layer = next(m for m in model.modules() if is_folded(m))
    norm = layer.norm
    norm.running_mean += 0.3
    norm.running_var *= 1.3
    errors = []
    for _ in range(2):
        found: list[Tensor] = []
        hook = layer.register_forward_hook(lambda _, x, y, found=found: found.append(y))
        for x in data:
            model.eval()(x)
        hook.remove()
        mean, var = averages(found)
        errors.append([(mean - norm.bias).abs().max().item(), (var.sqrt() / norm.weight - 1).abs().max().item()])
        recalibrate_batch_norm(model, data)
    assert min(errors[0]) > 0.1
    assert max(errors[1]) < 0.03


@torch.no_grad()
def test_slb_gets_the_statistics_of_the_chosen_levels() -> None:
    """Early in the search W_c is far from W_q, and so are the statistics of training from those of inference."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 6, 3, bias=False), nn.BatchNorm2d(6))
    quantizer = Slb(pretrained=False).build(Scheme(bits=1), role="weight")
    slot = Slot(quantizer, name="0.weight")
    give_weight_slot(net[0], slot)
    slot.observer, slot.mode = Mse().build(quantizer.scheme), "observe"
    slot(net[0].weight)
    slot.calibrate()
    quantizer.start(net[0].weight)
    data = images(16)
    for _ in range(200):
        net.train()(data[0])
    assert recalibrate_batch_norm(net, data) == 1
    hard = quantizer.eval()(net[0].weight)
    assert set(hard.unique().tolist()) == {-1.0, 1.0}
    assert_has(net[1], averages([F.conv2d(data[0], hard)]))
    y = net.eval()(data[0])
    torch.testing.assert_close(y.mean((0, 2, 3)), torch.zeros(6), rtol=0, atol=1e-5)
    torch.testing.assert_close(y.std((0, 2, 3)), torch.ones(6), rtol=1e-4, atol=0)


def test_a_network_without_batch_norm_needs_no_data() -> None:
    def refuses() -> Iterator[Tensor]:
        raise AssertionError("the data was read")
        yield

    assert recalibrate_batch_norm(nn.Linear(2, 2), refuses()) == 0
    model = folded(2)
    finish(model)
    assert recalibrate_batch_norm(model, refuses()) == 0


def test_data_that_gives_no_statistics_is_refused_and_the_network_left_as_it_was() -> None:
    net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with pytest.raises(CalibrationError, match=r"^1: a batch norm needs more than one value per channel, got \(1, 2\)"):
        recalibrate_batch_norm(net, [torch.randn(4, 3), torch.randn(1, 3)])
    with pytest.raises(CalibrationError, match="recalibration data is empty"):
        recalibrate_batch_norm(net, [])
    with pytest.raises(SettingError, match="at least 1"):
        recalibrate_batch_norm(net, [torch.randn(4, 3)], batches=0)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert net[1].training and net[1].momentum == 0.1
