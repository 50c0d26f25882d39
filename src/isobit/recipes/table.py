"""From a name to the thing: the literal table, then plug-ins, then an error with the nearest name."""

from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import TypeVar

from isobit.core.errors import UnknownNameError

T = TypeVar("T")


def look_up(kind: str, table: Mapping[str, T], name: str) -> T:
    """The entry of `table`, else that of a plug-in's entry point in the group `isobit.<kind>`.

    Raises UnknownNameError.

    >>> look_up("target", {"tvm": 1}, "tvm")
    1
    """
    if name in table:
        return table[name]
    plugins = {point.name: point for point in entry_points(group=f"isobit.{kind}")}
    if name in plugins:
        found: T = plugins[name].load()
        return found
    raise UnknownNameError(kind, name, [*table, *plugins])
