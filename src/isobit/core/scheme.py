"""Scheme: everything that fixes a number format, as one value."""

from dataclasses import dataclass, replace

from isobit.core.errors import SettingError
from isobit.core.granularity import Granularity, PerTensor
from isobit.core.grid import (
    LARGEST_FLOAT16,
    AdditivePowersOfTwo,
    Codebook,
    Float16,
    Geometric,
    Grid,
    MidRise,
    PowersOfTwo,
    Uniform,
    levels,
    uniform_ends,
)
from isobit.core.rounding import HalfEven, Rounding


@dataclass(frozen=True, slots=True)
class FloatScale:
    """The scale is any positive float32."""


@dataclass(frozen=True, slots=True)
class PowerOfTwo:
    """The scale is 2^k, so that an engine rescales by a shift; k is log2 of the wanted scale, rounded to nearest."""


ScaleForm = FloatScale | PowerOfTwo


@dataclass(frozen=True, kw_only=True, slots=True)
class Scheme:
    """A number format: q = clip(round(x / scale) + zero_point, quant_min, quant_max).

    `symmetric` fixes the zero point at 0. `narrow` drops the lowest level of a signed format (-127..127 in
    8 bits). `adapt_sign` makes a signed format unsigned where calibration saw no negative value.

    >>> Scheme(bits=4).quant_min, Scheme(bits=4).quant_max
    (-8, 7)
    """

    bits: int = 8
    signed: bool = True
    symmetric: bool = True
    granularity: Granularity = PerTensor()
    scale: ScaleForm = FloatScale()
    narrow: bool = False
    rounding: Rounding = HalfEven()
    grid: Grid = Uniform()
    adapt_sign: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.bits, bool) or not isinstance(self.bits, int) or not 1 <= self.bits <= 16:
            raise SettingError(f"bits has to be a whole number from 1 to 16, got {self.bits!r}")
        if self.narrow and (not self.signed or self.bits < 2):
            raise SettingError("narrow drops the lowest level of a signed format of at least 2 bits")
        if isinstance(self.grid, PowersOfTwo) and not (self.symmetric and self.bits <= 6):
            raise SettingError("the powers-of-two grid is symmetric and has at most 6 bits: 7 would need 2^62")
        if isinstance(self.grid, MidRise) and not (self.signed and self.symmetric and not self.adapt_sign):
            raise SettingError("the mid-rise grid is signed and symmetric: it has no level at 0")
        if not isinstance(self.grid, Uniform) and not self.symmetric:
            raise SettingError("only the uniform grid has a zero point")
        if not isinstance(self.grid, Uniform) and self.rounding != HalfEven():
            raise SettingError("only the uniform grid has a rounding: the others take the nearest level")
        plain = self.signed and self.scale == FloatScale() and not self.adapt_sign and not self.narrow
        plain = plain and self.granularity == PerTensor()
        if isinstance(self.grid, Geometric) and (not plain or not 6 <= self.bits <= 8):
            raise SettingError("the geometric grid has 6 to 8 bits, a sign, and one float scale for a tensor")
        if isinstance(self.grid, Float16) and (not plain or self.bits != 16):
            raise SettingError("16-bit floats are Scheme(bits=16, grid=Float16()): they have no scale and no sign")
        if isinstance(self.grid, AdditivePowersOfTwo):
            levels(self.grid, self.bits, signed=self.signed)

    @property
    def quant_min(self) -> int:
        """The lowest level, an integer."""
        return self._ends()[0]

    @property
    def quant_max(self) -> int:
        """The highest level, an integer."""
        return self._ends()[1]

    def _ends(self) -> tuple[int, int]:
        match self.grid:
            case Float16():
                return -LARGEST_FLOAT16, LARGEST_FLOAT16
            case Uniform():  # not from the levels: 16 bits have 65,536
                return uniform_ends(self.bits, signed=self.signed, narrow=self.narrow)
            case _:
                return self.levels[0], self.levels[-1]

    @property
    def levels(self) -> tuple[int, ...]:
        """All levels in ascending order."""
        return levels(self.grid, self.bits, signed=self.signed, narrow=self.narrow)

    def resolve_sign(self, *, all_non_negative: bool) -> "Scheme":
        """The scheme with `adapt_sign` settled: unsigned where no negative value was seen."""
        if not self.adapt_sign:
            return self
        return replace(self, adapt_sign=False, signed=not all_non_negative, narrow=self.narrow and not all_non_negative)

    def __str__(self) -> str:
        if isinstance(self.grid, Float16):
            return "float16" if self.grid.subnormals else "float16 without subnormals"
        sign = f"{'s' if self.signed else 'u'}{self.bits}"
        words = [f"{sign} or u{self.bits}" if self.adapt_sign else sign]
        words += ["narrow"] if self.narrow else []
        words.append("symmetric" if self.symmetric else "asymmetric")
        words.append(
            {"PerTensor": "per-tensor", "PerChannel": "per-channel", "PerGroup": "per-group"}[
                type(self.granularity).__name__
            ]
        )
        if isinstance(self.scale, PowerOfTwo):
            words.append("2^n scale")
        if isinstance(self.grid, Geometric):
            words.append(f"logarithmic, {self.grid.steps} steps an octave")
        elif not isinstance(self.grid, Uniform):
            words.append(_GRID_WORDS[type(self.grid)])
        return " ".join(words)


_GRID_WORDS = {
    PowersOfTwo: "logarithmic",
    MidRise: "mid-rise",
    AdditivePowersOfTwo: "additive powers of two",
    Codebook: "codebook",
}
