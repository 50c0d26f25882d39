"""From a recipe's names to settings, from a name to a thing, and plug-ins."""

from importlib.metadata import EntryPoint, EntryPoints

import pytest
import torch
from torch import nn

import isobit
from isobit.core.errors import SettingError, UnknownNameError
from isobit.graph.insert import slots
from isobit.graph.rules import Rules
from isobit.observers import MinMax, Mse, Percentile
from isobit.quantizers import Fixed, Lsq
from isobit.recipes import table
from isobit.recipes.recipe import Recipe
from isobit.recipes.table import look_up


def test_settings_of_a_recipe() -> None:
    recipe = Recipe(
        target="snpe", weight_bits=4, weight_quantizer="lsq", activation_observer="percentile",
        observers={"conv1.weight": "mse"}, keep_float=("head*",), layer_bits={"fc": (2, 4)}, seed=3,
    )  # fmt: skip
    assert (recipe.profile().weight.bits, recipe.profile().activation.bits) == (4, 8)
    assert recipe.preparing().weight == Lsq()
    assert recipe.preparing().activation == Fixed()
    assert recipe.rules() == Rules(keep_float=("head*",), bits={"fc": (2, 4)})
    settings = recipe.post_training()
    assert (settings.observation.activation, settings.seed) == (Percentile(), 3)
    assert settings.observation.by_name == {"conv1.weight": Mse()}


def test_observers_by_default() -> None:
    """8 bits take everything seen; fewer, with one scale for all, clip the tails."""
    eight, four = Recipe(target="snpe").post_training(), Recipe(target="snpe", weight_bits=4, activation_bits=4)
    assert (eight.observation.weight, eight.observation.activation) == (MinMax(), MinMax())
    assert (four.observation().weight, four.observation().activation) == (Mse(), Mse())


@pytest.mark.parametrize(
    ("key", "value", "near"),
    [
        ("target", "snpee", "snpe"),
        ("weight_quantizer", "lsqq", "lsq"),
        ("activation_observer", "minmax", "min_max"),
    ],
)
def test_unknown_names_name_the_nearest(key: str, value: str, near: str) -> None:
    recipe = Recipe(**{"target": "snpe", key: value})
    with pytest.raises(UnknownNameError, match=f"did you mean '{near}'") as caught:
        recipe.post_training()
    assert (caught.value.name, caught.value.nearest) == (value, near)


def test_another_format_is_refused() -> None:
    with pytest.raises(SettingError, match="format 1, this one has format 2"):
        Recipe(target="snpe", format=2)


def test_the_table_comes_before_plug_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    def points(*, group: str) -> EntryPoints:
        assert group == "isobit.target"
        return EntryPoints(
            [EntryPoint("tvm", "math:tau", group), EntryPoint("mine", "isobit.targets.tvm:PROFILE", group)]
        )

    monkeypatch.setattr(table, "entry_points", points)
    assert look_up("target", {"tvm": 1}, "tvm") == 1
    from isobit.targets.tvm import PROFILE

    assert look_up("target", {}, "mine") is PROFILE
    with pytest.raises(UnknownNameError, match="Known: mine, tvm"):
        look_up("target", {}, "yours")


def test_thirty_two_bits_leave_weights_or_activations_in_float() -> None:
    net, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5)), torch.randn(8, 3, 8, 8)
    for bits, found in (((32, 8), {"activation"}), ((1, 32), {"weight"})):
        model = isobit.quantize(net, [x], target="academic", weight_bits=bits[0], activation_bits=bits[1])
        places = {"weight" if slot.point.endswith("weight") else "activation" for slot in slots(model)}
        assert places == found
    with pytest.raises(SettingError, match="float network"):
        Recipe(target="academic", weight_bits=32, activation_bits=32)
