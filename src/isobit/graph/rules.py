"""Rules: what a user says about single layers. A rule that matches nothing is an error."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from isobit.core.errors import SettingError, UnknownNameError


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Exceptions by layer name; `*` and `?` match as in a shell, and the first pattern that fits wins.

    - `keep_float`: layers that are not quantized.
    - `quantize`: layers that have to be quantized; an error where the target cannot.
    - `bits`: widths of a layer's weight and input, as one number or (weight, activation); of an op without weights,
      such as a ReLU or an add, the width of its result, and the least one of what it reads.

    >>> Rules(keep_float=("head*",)).kept_by("head.fc")
    'head*'
    """

    keep_float: tuple[str, ...] = ()
    quantize: tuple[str, ...] = ()
    bits: Mapping[str, int | tuple[int, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for pattern, bits in self.bits.items():
            for value in bits if isinstance(bits, tuple) else (bits,):
                if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 16:
                    raise SettingError(f"bits for {pattern!r} have to be whole numbers from 1 to 16, got {bits!r}")

    def check(self, names: Iterable[str]) -> None:
        """Raise UnknownNameError for a pattern that fits none of `names`."""
        known = list(names)
        for pattern in (*self.keep_float, *self.quantize, *self.bits):
            if not any(fnmatchcase(name, pattern) for name in known):
                raise UnknownNameError("layer", pattern, known)

    def kept_by(self, name: str) -> str | None:
        """The pattern that keeps this layer in float."""
        return _first(self.keep_float, name)

    def forced_by(self, name: str) -> str | None:
        """The pattern that demands that this layer is quantized."""
        return _first(self.quantize, name)

    def bits_of(self, name: str) -> tuple[int, int] | None:
        """(weight bits, activation bits) where a rule gives them."""
        pattern = _first(self.bits, name)
        if pattern is None:
            return None
        bits = self.bits[pattern]
        return bits if isinstance(bits, tuple) else (bits, bits)


def _first(patterns: Iterable[str], name: str) -> str | None:
    return next((p for p in patterns if fnmatchcase(name, p)), None)
