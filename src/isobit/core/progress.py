"""Progress: long work tells whoever watches how far it is; the command line draws the bar."""

from collections.abc import Callable

Progress = Callable[[str, int, int | None], None]
"""Called with (what is being done, steps done, steps in all or None where that is unknown)."""


def silent(what: str, done: int, total: int | None) -> None:
    """Show nothing."""
    del what, done, total
