"""The least verdict that a caller accepts, as an exit code."""

from isobit.core.errors import UnknownNameError

_ORDER = ("exact", "bounded", "broken")

WORSE = 9
"""Exit code of a verdict that is worse than required."""


def check_verdict(require: str) -> None:
    """Raises UnknownNameError for anything but exact and bounded."""
    if require not in _ORDER[:2]:
        raise UnknownNameError("verdict", require, _ORDER[:2])


def exit_code(verdict: str, require: str) -> int:
    """0 where the verdict is at least as good as required.

    >>> exit_code("exact", "bounded"), exit_code("bounded", "exact")
    (0, 9)
    """
    return 0 if _ORDER.index(verdict) <= _ORDER.index(require) else WORSE
