"""From options and a recipe file to one recipe."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from isobit.core.errors import SettingError
from isobit.recipes.codec import decode, encode, read_recipe
from isobit.recipes.recipe import Recipe, widths


def recipe_of(
    file: Path | None,
    *,
    bits: int | None = None,
    layer_bits: Sequence[str] | None = None,
    **options: Any,
) -> Recipe:
    """The recipe of a file, with the options that were given over it; names are looked up before long work starts.

    Raises SettingError and UnknownNameError.
    """
    given = {key: list(v) if isinstance(v, tuple) else v for key, v in options.items() if v is not None and v != []}
    if bits is not None and (clash := {"weight_bits", "activation_bits"} & given.keys()):
        raise SettingError(f"give either --bits or --{min(clash).replace('_', '-')}, not both")
    if layer_bits:
        given["layer_bits"] = dict(_layer_bits(text) for text in layer_bits)
    start = {} if file is None else encode(read_recipe(Recipe, file))
    if "target" not in {*start, *given}:
        raise SettingError("say what to quantize for: --target NAME (see `isobit targets`), or --recipe FILE")
    if bits is not None:
        given |= widths({**start, **given}["target"], bits)
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
