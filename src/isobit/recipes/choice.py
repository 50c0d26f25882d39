"""A choice of a recipe: a name of a table, alone or with settings."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from isobit.core.errors import SettingError
from isobit.recipes.codec import decode, encode
from isobit.recipes.table import look_up

Plain = bool | int | float | str
Choice = str | Mapping[str, Plain | tuple[Plain, ...]]
"""`"slb"`, or `{"name": "slb", "begin": 0.2}`: in a recipe file `weight_quantizer = { name = "slb", begin = 0.2 }`."""


def chosen(kind: str, table: Mapping[str, Any], choice: Choice, *, key: str) -> Any:
    """The settings object of a choice, `key` being what the recipe calls it.

    Raises UnknownNameError for a name that is not in the table or a setting that this entry does not have,
    SettingError for a table without a name or a value that is not possible.

    >>> from isobit.observers import OBSERVERS
    >>> chosen("observer", OBSERVERS, {"name": "percentile", "percentile": 99.9}, key="activation_observer")
    Percentile(percentile=99.9, bins=None)
    """
    if isinstance(choice, str):
        return look_up(kind, table, choice)()
    name = choice.get("name")
    if not isinstance(name, str):
        raise SettingError(f"{key} lacks the key 'name': it says which {kind} is meant, as in {{ name = \"…\" }}")
    found = look_up(kind, table, name)
    rest = {k: v for k, v in choice.items() if k != "name"}
    if not (isinstance(found, type) and is_dataclass(found)):
        if rest:
            raise SettingError(f"{key}: {name} is no dataclass, so a recipe cannot set its {next(iter(rest))!r}")
        return found()
    return decode(found, rest, path=key)


def name_of(choice: Choice) -> str:
    """The name in a choice.

    >>> name_of({"name": "slb", "begin": 0.2})
    'slb'
    """
    return choice if isinstance(choice, str) else str(choice.get("name"))


def as_choice(settings: Any, table: Mapping[str, Any]) -> Choice:
    """The choice that gives these settings; raises SettingError for what a recipe cannot hold.

    >>> from isobit.quantizers import QUANTIZERS, Slb
    >>> as_choice(Slb(begin=0.2), QUANTIZERS)
    {'name': 'slb', 'begin': 0.2}
    """
    name = next((n for n, kind in table.items() if type(settings) is kind), None)
    if name is None:
        raise SettingError(f"{type(settings).__name__} is in no table of isobit, so a recipe cannot name it")
    changed = [f.name for f in fields(settings) if getattr(settings, f.name) != f.default]
    if missing := [n for n in changed if getattr(settings, n) is None]:
        raise SettingError(f"{name}.{missing[0]} = None cannot be written in a recipe: give a value")
    return {"name": name, **{n: encode(getattr(settings, n)) for n in changed}} if changed else name
