"""From a recipe's names to settings, from a name to a thing, and plug-ins."""

import json
from dataclasses import fields
from importlib.metadata import EntryPoint, EntryPoints
from typing import Any

import pytest
import torch
from torch import nn

import isobit
from isobit.core.errors import SettingError, UnknownNameError
from isobit.graph.insert import slots
from isobit.graph.rules import Rules
from isobit.observers import OBSERVERS, MinMax, Mse, Percentile
from isobit.quantizers import QUANTIZERS, Bwn, Fixed, Inq, Lsq, Slb
from isobit.recipes import table
from isobit.recipes.choice import as_choice, chosen
from isobit.recipes.codec import decode, encode
from isobit.recipes.recipe import Recipe, recipe_of
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


def test_settings_of_quantizers_and_observers_in_a_recipe() -> None:
    plain = {
        "target": "academic",
        "weight_quantizer": {"name": "slb", "begin": 0.2, "freeze": 1, "pretrained": False},
        "activation_observer": {"name": "percentile", "percentile": 99.9},
        "observers": {"conv1": {"name": "mse", "steps": 50}},
    }
    recipe = decode(Recipe, plain)
    assert recipe.preparing().weight == Slb(begin=0.2, freeze=1.0, pretrained=False)
    assert recipe.observation().activation == Percentile(percentile=99.9)
    assert recipe.observation().by_name == {"conv1": Mse(steps=50)}
    assert decode(Recipe, json.loads(json.dumps(encode(recipe)))) == recipe
    given = recipe_of(
        target="academic",
        weight_quantizer=Slb(begin=0.2, freeze=1.0, pretrained=False),
        activation_observer=Percentile(percentile=99.9),
        observers={"conv1": {"name": "mse", "steps": 50}},
    )
    assert given.preparing() == recipe.preparing()
    assert given.observation() == recipe.observation()


@pytest.mark.parametrize("table", [QUANTIZERS, OBSERVERS], ids=["quantizers", "observers"])
def test_every_settings_object_can_be_written_and_read(table: dict[str, Any]) -> None:
    for name, kind in table.items():
        assert as_choice(kind(), table) == name
        changed = {f.name: VALUES[(name, f.name)] for f in fields(kind) if (name, f.name) in VALUES}
        settings = kind(**changed)
        assert chosen("kind", table, as_choice(settings, table), key="key") == settings


VALUES: dict[tuple[str, str], Any] = {
    ("inq", "fractions"): (0.5, 1.0), ("inq", "begins"): (0.0, 0.5), ("bwn", "gradient"): "xnor",
    ("pact", "alpha"): 6.0, ("slb", "begin"): 0.25, ("percentile", "bins"): 512,
}  # fmt: skip


@pytest.mark.parametrize(
    ("choice", "error", "says"),
    [
        ({"begin": 0.2}, SettingError, "weight_quantizer lacks the key 'name': it says which quantizer"),
        ({"name": 3}, SettingError, "weight_quantizer lacks the key 'name'"),
        ({"name": "slbb"}, UnknownNameError, "unknown quantizer 'slbb': did you mean 'slb'"),
        (
            {"name": "slb", "begn": 0.2},
            UnknownNameError,
            "unknown key in weight_quantizer 'begn': did you mean 'begin'",
        ),
        ({"name": "slb", "begin": "x"}, SettingError, "weight_quantizer.begin has to be a number, got 'x'"),
        ({"name": "slb", "begin": 0.9}, SettingError, "0 <= begin < freeze <= 1, got 0.9 and 0.9"),
        ({"name": "slb", "begin": {}}, SettingError, "recipe.weight_quantizer.begin has to be"),
        ({"name": "bwn", "gradient": "x"}, SettingError, "gradient has to be 'straight_through' or 'xnor', got 'x'"),
        ({"name": "inq", "begins": [0, "x"]}, SettingError, r"weight_quantizer.begins\[1\] has to be a number"),
        (3, SettingError, "recipe.weight_quantizer has to be"),
        (MinMax(), SettingError, "MinMax is in no table"),
    ],
)
def test_settings_that_are_none(choice: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        recipe_of(target="academic", weight_quantizer=choice).preparing()


def test_lists_of_a_file_become_tuples() -> None:
    inq = {"name": "inq", "fractions": [0.5, 1.0], "begins": [0, 0.5]}
    assert recipe_of(target="academic", weight_quantizer=inq).preparing().weight == Inq(
        fractions=(0.5, 1.0), begins=(0.0, 0.5)
    )
    assert recipe_of(target="academic", weight_quantizer=Bwn(gradient="xnor")).weight_quantizer == {
        "name": "bwn",
        "gradient": "xnor",
    }


def test_only_quantizers_that_do_not_learn_get_weights_with_a_zero_point() -> None:
    assert not recipe_of(target="onnxruntime-x86", bits=4).profile().weight_scheme(4).symmetric
    assert recipe_of(target="onnxruntime-x86", bits=4, method="lsq").profile().weight_scheme(4).symmetric
    settings = {"name": "lsq"}
    assert recipe_of(target="onnxruntime-x86", bits=4, weight_quantizer=settings).profile().weight_scheme(4).symmetric


@pytest.mark.parametrize("target", ["onnxruntime-x86", "openvino-cpu"])
def test_weights_below_8_bits_have_a_zero_point_unless_they_shall_be_symmetric(target: str) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 4, 3)).eval()
    for symmetric in (None, True):
        settings = {} if symmetric is None else {"symmetric_weights": symmetric}
        model = isobit.quantize(net, [torch.randn(8, 3, 8, 8)], target=target, bits=4, **settings)
        (slot,) = (s for s in slots(model) if s.point.startswith("2") and "weight" in s.point)
        assert bool((slot.quantizer.zero_point != 0).any()) == (symmetric is None)
    with pytest.raises(SettingError, match="snpe has no groups of weights"):
        recipe_of(target="snpe", symmetric_weights=True).profile()
