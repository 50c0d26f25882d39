"""The strict codec: what it takes, what it refuses, and that what it writes it reads."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isobit.core.errors import IsobitError, SettingError, UnknownNameError
from isobit.recipes.codec import decode, encode, read_recipe
from isobit.recipes.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Inner:
    bits: int
    share: float = 0.5


@dataclass(frozen=True, kw_only=True)
class Outer:
    name: str
    inner: Inner = field(default_factory=lambda: Inner(bits=8))
    on: bool = False
    some: tuple[str, ...] = ()
    pair: tuple[int, int] = (1, 2)
    maybe: int | None = None
    table: Mapping[str, int | tuple[int, int]] = field(default_factory=dict)


def test_takes_what_it_should() -> None:
    value = {
        "name": "a",
        "inner": {"bits": 4, "share": 1},
        "on": True,
        "some": ["x"],
        "pair": [3, 4],
        "table": {"l": [1, 2]},
    }
    expected = Outer(name="a", inner=Inner(bits=4, share=1.0), on=True, some=("x",), pair=(3, 4), table={"l": (1, 2)})
    assert decode(Outer, value) == expected
    assert isinstance(decode(Outer, value).inner.share, float)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"inner": {"bits": "8"}}, SettingError, r"recipe\.inner\.bits has to be a whole number, got '8'"),
        ({"inner": {"bits": True}}, SettingError, r"recipe\.inner\.bits has to be a whole number, got True"),
        ({"inner": {"bits": 8.0}}, SettingError, "a whole number"),
        ({"inner": {}}, SettingError, "recipe.inner lacks the key 'bits'"),
        ({"inner": 8}, SettingError, "recipe.inner has to be a table of Inner"),
        ({"inner": {"bits": 8, "shares": 1}}, UnknownNameError, "key in recipe.inner 'shares': did you mean 'share'"),
        ({"nmae": "a"}, UnknownNameError, "did you mean 'name'"),
        ({"on": 1}, SettingError, "true or false"),
        ({"on": "true"}, SettingError, "true or false"),
        ({"some": "x"}, SettingError, "has to be a list"),
        ({"some": [1]}, SettingError, r"recipe\.some\[0\] has to be a text"),
        ({"pair": [1]}, SettingError, "2 values, got 1"),
        ({"maybe": "1"}, SettingError, "whole number"),
        ({"table": {"l": "8"}}, SettingError, r"recipe\.table\.l has to be"),
        ({"table": 3}, SettingError, "recipe.table has to be a table"),
        ({"name": 3}, SettingError, "recipe.name has to be a text"),
    ],
)
def test_refuses_and_names_the_path(change: dict[str, Any], error: type[IsobitError], says: str) -> None:
    with pytest.raises(error, match=says):
        decode(Outer, {"name": "a", **change})


RECIPES = st.builds(
    Recipe,
    target=st.sampled_from(["tvm", "snpe"]),
    weight_bits=st.none() | st.integers(1, 8),
    keep_float=st.lists(st.text(min_size=1)).map(tuple),
    observers=st.dictionaries(st.text(), st.sampled_from(["mse", "min_max"])),
    layer_bits=st.dictionaries(st.text(), st.integers(1, 8) | st.tuples(st.integers(1, 8), st.integers(1, 8))),
    seed=st.integers(0, 2**31),
)


@given(RECIPES)
def test_what_it_writes_it_reads(recipe: Recipe) -> None:
    assert decode(Recipe, json.loads(json.dumps(encode(recipe)))) == recipe


def test_reads_toml_and_json(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text('target = "tvm"\nweight_bits = 4\n[layer_bits]\n"layer1.*" = [4, 8]\n')
    (tmp_path / "r.json").write_text('{"target": "tvm", "weight_bits": 4, "layer_bits": {"layer1.*": [4, 8]}}')
    expected = Recipe(target="tvm", weight_bits=4, layer_bits={"layer1.*": (4, 8)})
    assert read_recipe(Recipe, tmp_path / "r.toml") == read_recipe(Recipe, tmp_path / "r.json") == expected


@pytest.mark.parametrize("content", [b"target = ", b"\xff\xfe\x00", b"[", b"target = 'a'\ntarget = 'b'"])
@pytest.mark.parametrize("suffix", [".toml", ".json"])
def test_files_that_do_not_parse(content: bytes, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"r{suffix}"
    path.write_bytes(content)
    with pytest.raises(SettingError, match=f"cannot read the recipe .*r{suffix}"):
        read_recipe(Recipe, path)
    with pytest.raises(SettingError, match="cannot read the recipe"):
        read_recipe(Recipe, tmp_path / "none.toml")
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(SettingError, match="has to be a table of Recipe"):
        read_recipe(Recipe, tmp_path / "list.json")
