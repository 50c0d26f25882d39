"""Batch norm frozen from a step on, and estimated anew at the end, under every folding."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from algorithms.blobs import Blobs, evaluation, network, prepared
from isobit.algorithms.batch_norm import batch_norms, freeze_batch_norm, recalibrate_batch_norm
from isobit.algorithms.training import Training
from isobit.core.errors import SettingError

pytest.importorskip("lightning", reason="Lightning is not installed")

from isobit.algorithms.training import train


def norm_of(model: nn.Module) -> nn.BatchNorm2d:
    (norm,) = batch_norms(model).values()
    assert isinstance(norm, nn.BatchNorm2d)
    return norm


@pytest.mark.parametrize("bn_fold", [-1, 1, 2, 3, 4])
def test_a_frozen_norm_computes_in_training_what_it_does_in_eval(bn_fold: int) -> None:
    model, (x, y) = prepared(bn_fold), evaluation()[0]
    want = model.eval()(x)
    model.train()
    assert freeze_batch_norm(model) == 1
    before = {k: v.clone() for k, v in model.state_dict().items()}
    output = model(x)
    assert torch.equal(output, want)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    F.cross_entropy(output, y).backward()
    norm = norm_of(model)
    assert norm.weight.grad is not None and bool(norm.weight.grad.any()) and bool(norm.bias.grad.any())
    freeze_batch_norm(model, affine=True)
    model.zero_grad()
    F.cross_entropy(model(x), y).backward()
    assert norm.weight.grad is None and norm.bias.grad is None


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("bn_fold", [None, -1, 1, 2, 3, 4])
def test_statistics_stay_from_that_step_on(bn_fold: int | None, affine: bool, tmp_path: Path) -> None:
    """None is the float network."""
    model = network() if bn_fold is None else prepared(bn_fold)
    norm, seen = norm_of(model), []

    def look(module: nn.Module, _: Any) -> None:
        if module.training:
            seen.append(
                (norm.training, *(t.detach().clone() for t in (norm.running_mean, norm.running_var, norm.weight)))
            )

    model.register_forward_pre_hook(look)
    settings = Training(epochs=4, learning_rate=0.05, freeze_bn_at=0.4, freeze_bn_affine=affine)
    record = train(model, Blobs(), evaluation(), settings, folder=tmp_path)
    first = 10  # the first of 24 steps that is not below 0.4 · 24
    assert [training for training, *_ in seen] == [True] * first + [False] * (24 - first)
    means, variances, gammas = (torch.stack([s[i] for s in seen]) for i in (1, 2, 3))
    for statistics in (means, variances):
        assert bool((statistics[first:] == statistics[first]).all())
        if bn_fold != 1:  # which never updates them
            assert not torch.equal(statistics[first], statistics[first - 1])
    assert torch.equal(norm.running_mean, means[first])  # type: ignore[arg-type]
    assert bool((gammas[first:] == gammas[first]).all()) is affine
    assert record.last is not None and record.last.accuracy > 80


def test_a_run_with_frozen_norms_resumes_to_the_bit(tmp_path: Path) -> None:
    settings = Training(
        epochs=4, learning_rate=0.05, freeze_bn_at=0.25, freeze_bn_affine=True, bn_reestimate=True, ema_decay=0.5
    )
    whole, resumed = prepared(4), prepared(4)
    want = train(whole, Blobs(), evaluation(), settings, folder=tmp_path / "whole")
    with pytest.raises(RuntimeError, match="killed"):
        train(prepared(4), Blobs(dies_in=2), evaluation(), settings, folder=tmp_path / "broken")
    got = train(resumed, Blobs(), evaluation(), settings, folder=tmp_path / "broken")
    assert got.epochs == want.epochs
    assert all(torch.equal(v, whole.state_dict()[k]) for k, v in resumed.state_dict().items())


@pytest.mark.parametrize("ema_decay", [None, 0.5])
@pytest.mark.parametrize("bn_fold", [None, -1, 4])
def test_statistics_are_estimated_anew_at_the_end(bn_fold: int | None, ema_decay: float | None, tmp_path: Path) -> None:
    model = network() if bn_fold is None else prepared(bn_fold)
    settings = Training(epochs=2, learning_rate=0.05, bn_reestimate=True, bn_recalibration=4, ema_decay=ema_decay)
    record = train(model, Blobs(), evaluation(), settings, folder=tmp_path)
    norm, outputs = norm_of(model), []
    assert record.last is not None
    assert record.last.right == sum(int((model.eval()(x).argmax(1) == y).sum()) for x, y in evaluation())
    if bn_fold == 4:  # the new σ moves the weight in front of its quantizer: estimated once more, it stays close
        found = [t.clone() for t in (norm.running_mean, norm.running_var)]  # type: ignore[union-attr]
        recalibrate_batch_norm(model, list(Blobs().epoch(1))[:4])
        torch.testing.assert_close(norm.running_mean, found[0], rtol=0.05, atol=0.02)
        torch.testing.assert_close(norm.running_var, found[1], rtol=0.1, atol=0.01)
        return
    norm.register_forward_pre_hook(lambda _, inputs: outputs.append(inputs[0].detach()))
    for x, _ in list(Blobs().epoch(1))[:4]:
        model(x)
    rows: list[Tensor] = [y.movedim(1, 0).flatten(1) for y in outputs]
    torch.testing.assert_close(norm.running_mean, torch.stack([r.mean(1) for r in rows]).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack([r.var(1) for r in rows]).mean(0))


def test_where_there_is_nothing_to_freeze(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="no batch norm to freeze"):
        train(prepared(0), Blobs(), evaluation(), Training(epochs=1, freeze_bn_at=0.5), folder=tmp_path)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"freeze_bn_at": 1.0}, "freeze_bn_at is a part of the training, from 0 to below 1, got 1.0"),
        ({"freeze_bn_affine": True}, "freeze_bn_affine is set, and freeze_bn_at is not"),
        ({"bn_reestimate": True, "bn_recalibration": 0}, "bn_reestimate is set, and bn_recalibration is 0 batches"),
        ({"bn_recalibration": -1}, "bn_recalibration is a number of batches, at least 0, got -1"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingError, match=says):
        Training(**settings)
