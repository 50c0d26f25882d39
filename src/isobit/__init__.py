"""isobit: the same answers, in fewer bits."""

from isobit.core import errors

__all__ = ["errors"]
