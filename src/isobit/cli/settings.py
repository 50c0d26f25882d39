"""From options and a recipe file to one recipe."""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from isobit.core.errors import SettingError
from isobit.recipes.codec import decode, encode, read_recipe
from isobit.recipes.recipe import Recipe


def recipe_of(
    file: Path | None,
    chosen: Sequence[str] | None = None,
    *,
    bits: int | None = None,
    layer_bits: Sequence[str] | None = None,
    **options: Any,
) -> Recipe:
    """The recipe of a file, with the options that were given over it; names are looked up before long work starts.

    `chosen` are keys of the recipe, as `key=value`, a value as in TOML or a plain word. Raises SettingError and
    UnknownNameError.
    """
    given = {key: list(v) if isinstance(v, tuple) else v for key, v in options.items() if v is not None and v != []}
    if bits is not None:
        if clash := {"weight_bits", "activation_bits"} & given.keys():
            raise SettingError(f"give either --bits or --{min(clash).replace('_', '-')}, not both")
        given |= {"weight_bits": bits, "activation_bits": bits}
    if layer_bits:
        given["layer_bits"] = dict(_layer_bits(text) for text in layer_bits)
    for text in chosen or ():
        key, value = _chosen(text)
        if key in given:
            raise SettingError(f"give {key} once, by --set or by its own option")
        given[key] = value
    start = {} if file is None else encode(read_recipe(Recipe, file))
    if "target" not in {*start, *given}:
        raise SettingError("say what to quantize for: --target NAME (see `isobit targets`), or --recipe FILE")
    recipe = decode(Recipe, {**start, **given})
    recipe.profile()
    recipe.post_training()
    return recipe


def _layer_bits(text: str) -> tuple[str, int | list[int]]:
    """`layer1.*=4` or `layer1.*=4,8`."""
    pattern, equals, widths = text.rpartition("=")
    numbers = widths.split(",")
    if not equals or not pattern or not all(n.strip().isdecimal() for n in numbers) or len(numbers) > 2:
        raise SettingError(
            f"--layer-bits {text!r} is not understood: write 'layer1.*=4', or 'layer1.*=4,8' for weights "
            "and activations"
        )
    found = [int(n) for n in numbers]
    return pattern, found[0] if len(found) == 1 else found


def _chosen(text: str) -> tuple[str, Any]:
    """`smooth=0.5`, `activation_observer={ name = "percentile", percentile = 99.9 }` or `reconstruction=gptq`."""
    key, equals, value = (part.strip() for part in text.partition("="))
    if not equals or not key or not value:
        raise SettingError(f"--set {text!r} is not understood: write 'key=value', a key of a recipe and its value")
    try:
        return key, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key, value
