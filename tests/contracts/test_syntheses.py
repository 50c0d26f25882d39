"""What everything that makes inputs without data promises. A new one needs a line in `SYNTHESES` and no more."""

from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import nn

import isobit
from isobit.algorithms import SYNTHESES
from isobit.core.errors import SettingError, UnknownNameError, UnsupportedError


def network() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(6, 4),
    )  # fmt: skip
    isobit.recalibrate_batch_norm(net, [torch.randn(64, 3, 9, 9)])
    return net.train()


def short(name: str) -> dict[str, Any]:
    """Settings with few iterations, where there are any."""
    return {"iterations": 3} if "iterations" in {f.name for f in fields(SYNTHESES[name])} else {}  # type: ignore[arg-type]


def made(name: str, **more: Any) -> list[torch.Tensor]:
    return isobit.synthesize(network(), (1, 3, 9, 9), method=name, **(short(name) | {"samples": 21} | more))


@pytest.mark.parametrize("name", SYNTHESES)
def test_as_many_samples_as_asked_for_of_the_shape(name: str) -> None:
    for samples in (1, 21, 40):
        batches = made(name, samples=samples)
        assert sum(len(x) for x in batches) == samples
        assert all(x.shape[1:] == (3, 9, 9) and x.dtype == torch.float32 for x in batches)
        assert all(bool(torch.isfinite(x).all()) and not x.requires_grad for x in batches)


@pytest.mark.parametrize("name", SYNTHESES)
def test_the_same_for_a_seed_whatever_was_drawn_before(name: str) -> None:
    torch.manual_seed(5)
    first = torch.cat(made(name))
    state = torch.get_rng_state()
    torch.manual_seed(6)
    assert torch.equal(first, torch.cat(made(name)))
    assert not torch.equal(first, torch.cat(made(name, seed=1)))
    torch.set_rng_state(state)


@pytest.mark.parametrize("name", SYNTHESES)
def test_the_callers_random_state_and_network_stay(name: str) -> None:
    net = network()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    state = torch.get_rng_state()
    isobit.synthesize(net, (1, 3, 9, 9), method=name, samples=4, **short(name))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(m.training for m in net.modules())
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
    assert not any(m._forward_pre_hooks for m in net.modules())


@pytest.mark.parametrize("name", SYNTHESES)
def test_values_lie_about_the_range(name: str) -> None:
    x = torch.cat(made(name, input_range=(100.0, 200.0), samples=40))
    assert 110 < float(x.mean()) < 190
    assert 5 < float(x.std()) < 45


@pytest.mark.parametrize("name", SYNTHESES)
def test_progress_ends_at_its_total(name: str) -> None:
    seen: list[tuple[str, int, int | None]] = []
    made(name, progress=lambda *step: seen.append(step))
    assert seen
    assert seen[-1][1] == seen[-1][2]
    assert [s[1] for s in seen] == sorted(s[1] for s in seen)


@pytest.mark.parametrize("name", SYNTHESES)
def test_calibration_takes_them(name: str) -> None:
    net = network().eval()
    model = isobit.quantize(net, made(name, samples=16), target="onnxruntime-x86")
    assert model.meta["samples"] == 16


@pytest.mark.parametrize("name", SYNTHESES)
def test_whole_numbers_are_refused(name: str) -> None:
    with pytest.raises(UnsupportedError, match="real samples"):
        isobit.synthesize(network(), torch.zeros(1, 4, dtype=torch.int64), method=name)


@pytest.mark.parametrize("name", SYNTHESES)
def test_settings_that_there_are_not(name: str) -> None:
    with pytest.raises(UnknownNameError, match="iteration"):
        isobit.synthesize(network(), (1, 3, 9, 9), method=name, iteration=3)
    with pytest.raises(SettingError, match="at least 1"):
        isobit.synthesize(network(), (1, 3, 9, 9), method=name, samples=0)
    with pytest.raises(SettingError, match="input_range"):
        isobit.synthesize(network(), (1, 3, 9, 9), method=name, input_range=(1, 0), **short(name))


def test_an_unknown_method() -> None:
    with pytest.raises(UnknownNameError, match="zeroq"):
        isobit.synthesize(network(), (1, 3, 9, 9), method="zeroqq")
