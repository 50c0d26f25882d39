"""Grids: which integer levels a quantized value may take, before it is multiplied by the scale.

A grid is a value with two questions: how many levels it has, and which they are. Every level is an integer, so
that what a quantizer declares can be stored as an integer and an engine can compute with it. The levels of a
codebook are indices into a table of values, which the quantizer declares beside its scale.
"""

from dataclasses import dataclass
from itertools import product

from isobit.core.errors import SettingError


@dataclass(frozen=True, slots=True)
class Uniform:
    """Every integer between the lowest and the highest level."""


@dataclass(frozen=True, slots=True)
class PowersOfTwo:
    """Logarithmic: 0 and ± 2^k for k = 0, 1, …; a product is a shift. (Miyashita et al. 2016, arXiv:1603.01025)."""


@dataclass(frozen=True, slots=True)
class MidRise:
    """Odd integers: 2^bits levels an even distance apart, symmetric and without 0; the scale is half a step.

    One bit is {-1, 1}; the grid of DoReFa's and SAWB's weights, of binary networks and of SLB.
    """


@dataclass(frozen=True, slots=True)
class AdditivePowersOfTwo:
    """Sums of powers of two, one from each of several sets (Li et al., ICLR 2020, arXiv:1909.13144, equation 5)."""


@dataclass(frozen=True, slots=True)
class Codebook:
    """Indices 0 … 2^bits - 1 into a table of values that the quantizer declares; `signed` says what the values are."""


@dataclass(frozen=True, slots=True)
class Float16:
    """IEEE 754 binary16: 5 bits of exponent, 10 of mantissa; a value has its scale with it, so that none is calibrated.

    Beyond ±65504 a value becomes ±65504, not infinity. Without `subnormals`, what is below 2^-14 once it is rounded
    becomes 0.
    """

    subnormals: bool = True


@dataclass(frozen=True, slots=True)
class Geometric:
    """Logarithmic with `steps` levels in each octave: 0, s · 2^(k / steps) for k = 0, 1, … and -s · 2^(k / steps) for
    k = 1, 2, …, whose code is a sign and the bits of k. Levels are indices into these values, ascending."""

    steps: int = 16


Grid = Uniform | PowersOfTwo | MidRise | AdditivePowersOfTwo | Codebook | Float16 | Geometric

LARGEST_FLOAT16 = 65504
"""(2 - 2^-10) · 2^15."""

POWERS: dict[int, tuple[tuple[int, ...], ...]] = {
    1: ((0, 1),),
    2: ((0, 1, 2, 4),),
    3: ((0, 1, 4, 8), (0, 2)),
    4: ((0, 2, 8, 32), (0, 1, 4, 16)),
    5: ((0, 2, 16, 64), (0, 1, 8, 32), (0, 4)),
}
"""The sets of additive powers of two, as integers, for each number of bits that the magnitude has."""


def uniform_ends(bits: int, *, signed: bool, narrow: bool = False) -> tuple[int, int]:
    """The lowest and the highest level of the uniform grid.

    >>> uniform_ends(16, signed=True)
    (-32768, 32767)
    """
    if not signed:
        return 0, (1 << bits) - 1
    return -(1 << (bits - 1)) + int(narrow), (1 << (bits - 1)) - 1


def levels(grid: Grid, bits: int, *, signed: bool, narrow: bool = False) -> tuple[int, ...]:
    """The levels in ascending order, at most 2^bits of them.

    >>> levels(Uniform(), 2, signed=True)
    (-2, -1, 0, 1)
    >>> levels(PowersOfTwo(), 3, signed=True)
    (-4, -2, -1, 0, 1, 2, 4)
    >>> levels(PowersOfTwo(), 3, signed=False)
    (0, 1, 2, 4, 8, 16, 32, 64)
    >>> levels(MidRise(), 2, signed=True)
    (-3, -1, 1, 3)
    >>> levels(AdditivePowersOfTwo(), 3, signed=False)
    (0, 1, 2, 3, 4, 6, 8, 10)
    """
    match grid:
        case MidRise():
            return tuple(range(1 - (1 << bits), 1 << bits, 2))
        case AdditivePowersOfTwo():
            magnitude = bits - int(signed)
            if magnitude not in POWERS:
                raise SettingError(
                    f"additive powers of two have a magnitude of 1 to {max(POWERS)} bits, not {magnitude}"
                )
            sums = tuple(sorted({sum(terms) for terms in product(*POWERS[magnitude])}))
            return (*(-p for p in reversed(sums[1:])), *sums) if signed else sums
        case Codebook() | Geometric():
            return tuple(range(1 << bits))
        case Float16():
            raise SettingError("16-bit floats are no integer levels: they are cast to")
        case Uniform():
            low, high = uniform_ends(bits, signed=signed, narrow=narrow)
            return tuple(range(low, high + 1))
        case PowersOfTwo():
            count = (1 << (bits - 1)) - 1 if signed else (1 << bits) - 1
            powers = tuple(1 << k for k in range(count))
            return (*(-p for p in reversed(powers)), 0, *powers) if signed else (0, *powers)
