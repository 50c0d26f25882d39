"""Grids: which integer levels a quantized value may take, before it is multiplied by the scale.

A grid is a value with two questions: how many levels it has, and which they are. Every level is an integer, so
that what a quantizer declares can be stored as an integer and an engine can compute with it. Grids with
levels of their own (additive powers of two, codebooks, small floats) join the `Grid` union beside these two.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Uniform:
    """Every integer between the lowest and the highest level."""


@dataclass(frozen=True, slots=True)
class PowersOfTwo:
    """Logarithmic: 0 and ± 2^k for k = 0, 1, …; a product is a shift. (Miyashita et al. 2016, arXiv:1603.01025)."""


Grid = Uniform | PowersOfTwo


def levels(grid: Grid, bits: int, *, signed: bool, narrow: bool = False) -> tuple[int, ...]:
    """The levels in ascending order, at most 2^bits of them.

    >>> levels(Uniform(), 2, signed=True)
    (-2, -1, 0, 1)
    >>> levels(PowersOfTwo(), 3, signed=True)
    (-4, -2, -1, 0, 1, 2, 4)
    >>> levels(PowersOfTwo(), 3, signed=False)
    (0, 1, 2, 4, 8, 16, 32, 64)
    """
    match grid:
        case Uniform():
            low = -(1 << (bits - 1)) + int(narrow) if signed else 0
            high = (1 << (bits - 1)) - 1 if signed else (1 << bits) - 1
            return tuple(range(low, high + 1))
        case PowersOfTwo():
            count = (1 << (bits - 1)) - 1 if signed else (1 << bits) - 1
            powers = tuple(1 << k for k in range(count))
            return (*(-p for p in reversed(powers)), 0, *powers) if signed else (0, *powers)
