"""Folded layers: without quantization they are layer and batch norm; with it, each strategy is its formula."""

import copy
import dataclasses
import importlib
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from isobit.core.errors import SettingError
from isobit.core.qparams import qparams_of_range
from isobit.core.scheme import Scheme
from isobit.graph.folding import STRATEGIES, Strategy, fold_in_training
from isobit.graph.passes import FoldBatchNormInTraining
from isobit.graph.slots import Slot, give_weight_slot
from isobit.quantizers import DoReFa, Fixed

table: Any = importlib.import_module("folding_table")
TRAINED: tuple[Strategy, ...] = STRATEGIES[2:]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(("kind", "bias"), list(itertools.product(table.LAYERS, [True, False])))
@pytest.mark.parametrize("zero_gamma", [False, True])
def test_without_quantization_it_is_layer_and_batch_norm(
    kind: str, bias: bool, strategy: Strategy, zero_gamma: bool
) -> None:
    errors = table.measure(kind, strategy, bias=bias, zero_gamma=zero_gamma)
    if kind == "transposed, grouped" and strategy == 0:
        assert errors is None
        return
    found = dataclasses.asdict(errors)
    missing = {name for name, value in found.items() if value is None}
    in_training = {"output", "gradients", "statistics"} if strategy in (0, 1) else set()
    assert missing == in_training | ({"merged"} if kind == "transposed, grouped" and strategy == -1 else set())
    assert max(value for value in found.values() if value is not None) < 1e-12


def quantized(strategy: Strategy) -> tuple[Any, Any, Tensor]:
    """A convolution with a coarse quantizer, its batch norm, and data."""
    layer, norm = table.pair("conv", bias=True)
    x = torch.randn(5, 6, 7, 7, dtype=torch.float64)
    quantizer = Fixed().build(Scheme(bits=3), role="weight")
    quantizer.scale, quantizer.zero_point = torch.tensor(0.0625), torch.tensor(0)
    slot = Slot(quantizer, name="weight")
    slot.mode = "quantize"
    give_weight_slot(layer, slot)
    fold_in_training(layer, norm, strategy, synchronized=False)
    layer.train()
    norm.train()
    return layer, norm, x


def round_weight(w: Tensor) -> Tensor:
    return (w / 0.0625).round().clamp(-4, 3) * 0.0625


def by_formula(strategy: Strategy, layer: Any, norm: Any, x: Tensor) -> Tensor:
    """The formulas of the module's docstring, on their own."""
    w, b, gamma, beta = layer.weight.detach(), layer.bias.detach(), norm.weight.detach(), norm.bias.detach()
    y = nn.functional.conv2d(x, w, b, padding=1)
    mean, var = y.mean((0, 2, 3)), y.var((0, 2, 3), unbiased=False)
    running, batch = (norm.running_var + norm.eps).sqrt(), (var + norm.eps).sqrt()

    def conv(weight: Tensor) -> Tensor:
        return nn.functional.conv2d(x, weight, padding=1)

    def column(v: Tensor) -> Tensor:
        return v.reshape(1, -1, 1, 1)

    def row(v: Tensor) -> Tensor:
        return v.reshape(-1, 1, 1, 1)

    match strategy:
        case 1:
            return conv(round_weight(w * row(gamma / running))) + column(
                beta + (b - norm.running_mean) * gamma / running
            )
        case 2:
            return conv(round_weight(w * row(gamma / batch))) + column(beta + (b - mean) * gamma / batch)
        case 3:
            out = conv(round_weight(w * row(gamma / running))) * column(running / batch)
            return out + column(beta + (b - mean) * gamma / batch)
        case _:
            f = gamma / running
            z = conv(round_weight(w * row(f))) / column(f) + column(b)
            mean, var = z.mean((0, 2, 3)), z.var((0, 2, 3), unbiased=False)
            return (z - column(mean)) / column((var + norm.eps).sqrt()) * column(gamma) + column(beta)


@pytest.mark.parametrize("strategy", TRAINED)
def test_with_quantization_it_is_the_formula(strategy: Strategy) -> None:
    layer, norm, x = quantized(strategy)
    want = by_formula(strategy, layer, copy.deepcopy(norm), x)
    torch.testing.assert_close(layer(x), want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("strategy", TRAINED)
def test_in_eval_and_frozen_all_compute_the_deployed_layer(strategy: Strategy) -> None:
    layer, norm, x = quantized(strategy)
    norm.eval()
    want = by_formula(1, layer, norm, x)
    before = norm.running_mean.clone()
    torch.testing.assert_close(layer(x), want, rtol=1e-12, atol=1e-12)
    layer.eval()
    torch.testing.assert_close(layer(x), want, rtol=1e-12, atol=1e-12)
    assert torch.equal(norm.running_mean, before)


@pytest.mark.parametrize("strategy", TRAINED[1:])
def test_momentum_none_averages_all_batches(strategy: Strategy) -> None:
    layer, norm, x = quantized(strategy)
    norm.momentum = None
    norm.reset_running_stats()
    other = copy.deepcopy(norm)
    for scale in (1.0, 2.0, 3.0):
        layer(x * scale)
    if strategy != 4:
        for scale in (1.0, 2.0, 3.0):
            other(nn.functional.conv2d(x * scale, layer.weight, layer.bias, padding=1))
        torch.testing.assert_close(norm.running_mean, other.running_mean, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(norm.running_var, other.running_var, rtol=1e-12, atol=1e-12)
    assert int(norm.num_batches_tracked) == 3


def test_one_value_per_channel_is_refused() -> None:
    layer, _, _ = quantized(2)
    with pytest.raises(ValueError, match="more than one value per channel"):
        layer(torch.randn(1, 6, 1, 1, dtype=torch.float64))


@pytest.mark.parametrize("strategy", [-1, 0, 5])
def test_other_strategies_are_refused(strategy: Any) -> None:
    with pytest.raises(SettingError, match="by strategy 1, 2, 3 or 4"):
        FoldBatchNormInTraining(strategy=strategy)


@pytest.mark.parametrize(("unit_range", "settles"), [(False, True), (True, False)])
def test_statistics_settle_where_weights_keep_their_range(unit_range: bool, settles: bool) -> None:
    """Strategy 4 quantizes W γ / σ and divides by γ / σ: with a range fixed at 1 the statistics follow themselves."""
    layer, norm, x = quantized(4)
    layer.weight_slot.quantizer = quantizer = DoReFa(unit_range=unit_range).build(Scheme(bits=4), role="weight")
    quantizer.calibrate(qparams_of_range(torch.tensor(-1.0), torch.tensor(1.0), Scheme(bits=4)))
    with torch.no_grad():
        found = [layer(x) for _ in range(300)]
        trained, deployed = found[-1], layer.eval()(x) if norm.eval() else x
    assert ((deployed - trained).abs().mean() < 0.05 * trained.abs().mean()) == settles
