"""The one strict codec between frozen settings and plain values: what a TOML or JSON file holds."""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from isobit.core.errors import SettingError, UnknownNameError

T = TypeVar("T")


def encode(settings: Any) -> Any:
    """Frozen settings as dicts, lists and plain values; None is left out."""
    if is_dataclass(settings) and not isinstance(settings, type):
        values = {f.name: encode(getattr(settings, f.name)) for f in fields(settings)}
        return {key: value for key, value in values.items() if value is not None}
    if isinstance(settings, Mapping):
        return {str(key): encode(value) for key, value in settings.items()}
    if isinstance(settings, (list, tuple)):
        return [encode(value) for value in settings]
    return settings


def decode(kind: type[T], value: Any, *, path: str = "recipe") -> T:
    """Settings from plain values.

    Raises UnknownNameError for a key that `kind` does not have and SettingError for a value of another type
    (`"8"` and `true` are no numbers) or a key that is missing; both name the path.
    """
    if not isinstance(value, Mapping):
        raise SettingError(f"{path} has to be a table of {kind.__name__}, got {value!r}")
    known = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
    for key in value:
        if key not in known:
            raise UnknownNameError(f"key in {path}", str(key), known)
    required = [n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING]
    if missing := [name for name in required if name not in value]:
        raise SettingError(f"{path} lacks the key {missing[0]!r}")
    hints = get_type_hints(kind)
    return kind(**{key: _typed(hints[key], item, f"{path}.{key}") for key, item in value.items()})


def read_recipe(kind: type[T], path: str | Path) -> T:
    """Settings from a TOML or JSON file; raises SettingError for a file that is missing or does not parse."""
    path = Path(path)
    try:
        text = path.read_text()
        value = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, json.JSONDecodeError) as error:
        raise SettingError(f"cannot read the recipe {path}: {error}") from error
    return decode(kind, value, path=path.name)


def _typed(hint: Any, value: Any, path: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return _one_of(arguments, value, path)
    if origin is tuple:
        return _sequence(arguments, value, path)
    if origin is Literal:
        if value not in arguments:
            raise SettingError(f"{path} has to be {' or '.join(map(repr, arguments))}, got {value!r}")
        return value
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise SettingError(f"{path} has to be a table, got {value!r}")
        return {key: _typed(arguments[1], item, f"{path}.{key}") for key, item in value.items()}
    if is_dataclass(hint) and isinstance(hint, type):
        return decode(hint, value, path=path)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and (not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool)):
        raise SettingError(f"{path} has to be {_NAMES.get(hint, hint.__name__)}, got {value!r}")
    return value


_NAMES: dict[type, str] = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}


def _one_of(kinds: tuple[Any, ...], value: Any, path: str) -> Any:
    errors: list[tuple[Any, SettingError | UnknownNameError]] = []
    for kind in kinds:
        if kind is type(None):
            if value is None:
                return None
            continue
        try:
            return _typed(kind, value, path)
        except (SettingError, UnknownNameError) as error:
            errors.append((kind, error))
    if isinstance(value, Mapping):  # what a table lacks is told by the kind that takes tables
        raise next((e for kind, e in errors if kind not in _NAMES), errors[0][1])
    if len(errors) > 1 and all(kind in _NAMES for kind, _ in errors):
        raise SettingError(f"{path} has to be {' or '.join(_NAMES[kind] for kind, _ in errors)}, got {value!r}")
    raise errors[0][1]


def _sequence(kinds: tuple[Any, ...], value: Any, path: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise SettingError(f"{path} has to be a list, got {value!r}")
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        return tuple(_typed(kinds[0], item, f"{path}[{i}]") for i, item in enumerate(value))
    if len(kinds) != len(value):
        raise SettingError(f"{path} has to hold {len(kinds)} values, got {len(value)}")
    return tuple(_typed(kind, item, f"{path}[{i}]") for i, (kind, item) in enumerate(zip(kinds, value, strict=True)))
