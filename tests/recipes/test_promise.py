"""The promise of accuracy: kept by the cheapest means, or the best found; resumable; what it was is written down."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from isobit.core.errors import ArtifactError, CalibrationError, SettingError
from isobit.graph.convert import convert, hash_integers
from isobit.recipes.promise import Promise, quantize_within

QUICK = {"name": "adaround", "iterations": 2}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(),
        nn.Flatten(), nn.Linear(32, 10),
    ).eval()  # fmt: skip


def images(seed: int = 1) -> Tensor:
    return torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


class Closeness:
    """100 (1 - noise / signal) of the logits; counts how often it is asked."""

    def __init__(self, net: nn.Module) -> None:
        self.x, self.asked = images(2), 0
        with torch.no_grad():
            self.y = net(self.x)

    def __call__(self, net: nn.Module) -> float:
        self.asked += 1
        with torch.no_grad():
            noise = (net(self.x) - self.y).square().sum() / self.y.square().sum()
        return 100 * (1 - float(noise))


def kept(metric: Any = None, **settings: Any) -> Any:
    net = network()
    return quantize_within(net, [images()], metric or Closeness(net), target="onnxruntime-x86", **settings)


def test_the_first_step_that_keeps_the_promise_is_the_last() -> None:
    record = kept(max_drop=5.0).meta["promise"]
    assert [s.name for s in record.steps] == ["as asked"]
    assert record.kept
    assert record.float_metric == 100
    assert record.drop == 100 - record.steps[0].metric


def test_layers_that_cost_most_get_more_bits_until_it_is_kept() -> None:
    net = network()
    metric = Closeness(net)
    found = []
    model = quantize_within(
        net, [images()], metric, max_drop=0.5, target="onnxruntime-x86", bits=2, reconstruction=QUICK,
        found=lambda m, s: found.append((s.name, metric(m))),
    )  # fmt: skip
    record = model.meta["promise"]
    assert record.kept
    assert len(record.steps) >= 3
    assert 100 - metric(model) == record.drop <= 0.5
    wide = model.meta["recipe"]["layer_bits"]
    assert len(wide) > 0
    assert set(wide.values()) == {8}
    assert [name for name, _ in found] == [s.name for s in record.steps if s.better]
    assert [value for _, value in found] == [s.metric for s in record.steps if s.better]


def test_what_cannot_be_kept_gives_the_best_found_and_half_of_the_layers_stay_integers() -> None:
    model = kept(max_drop=0.0, bits=4, reconstruction=QUICK)
    record = model.meta["promise"]
    assert not record.kept
    measured = [s.metric for s in record.steps if s.metric is not None]
    assert record.drop == 100 - max(measured)
    assert any("in float" in s.name for s in record.steps)
    assert len(model.meta["recipe"]["keep_float"]) <= 2


def test_a_limit_of_time_ends_the_search_after_a_step() -> None:
    record = kept(max_drop=0.0, bits=4, seconds=1e-6).meta["promise"]
    assert len(record.steps) == 1
    assert not record.kept


class StopError(Exception):
    pass


def test_interrupted_and_resumed_it_ends_the_same(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"max_drop": 0.5, "bits": 2, "reconstruction": QUICK}
    whole = kept(**settings)

    class Fails(Closeness):
        def __call__(self, net: nn.Module) -> float:
            if self.asked == 3:
                raise StopError
            return super().__call__(net)

    with pytest.raises(StopError):
        kept(Fails(network()), folder=tmp_path, **settings)
    again = Closeness(network())
    resumed = kept(again, folder=tmp_path, **settings)
    steps = [[(s.name, s.metric, s.better) for s in m.meta["promise"].steps] for m in (whole, resumed)]
    assert steps[0] == steps[1]
    assert again.asked == len(steps[0]) - 2  # the float network and two steps were done
    assert hash_integers(convert(whole)) == hash_integers(convert(resumed))


def test_a_folder_of_another_search_is_refused(tmp_path: Path) -> None:
    kept(max_drop=5.0, folder=tmp_path)
    with pytest.raises(ArtifactError, match="another network or recipe"):
        kept(max_drop=5.0, bits=4, folder=tmp_path)
    (tmp_path / "steps.json").write_text(json.dumps({"key": 1}))
    with pytest.raises(ArtifactError, match="delete it"):
        kept(max_drop=5.0, folder=tmp_path)


@pytest.mark.parametrize(
    ("metric", "says"),
    [(lambda net: float("nan"), "has to be finite"), (lambda net: "good", "is no number")],
)
def test_metrics_that_are_no_numbers(metric: Any, says: str) -> None:
    with pytest.raises(CalibrationError, match=says):
        kept(metric, max_drop=1.0)


def test_data_without_labels_has_no_top_1() -> None:
    with pytest.raises(CalibrationError, match="no labels"):
        kept([images()], max_drop=1.0)


@pytest.mark.parametrize("setting", [{"max_drop": -1.0}, {"max_drop": 1.0, "seconds": 0}, {"max_drop": 1, "share": 2}])
def test_promises_that_make_no_sense(setting: dict[str, Any]) -> None:
    with pytest.raises(SettingError):
        Promise(**setting)
