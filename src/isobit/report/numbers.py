"""How the report writes numbers: few digits, a unit, and a dash where nothing was measured."""

import math

NONE = "–"


def count(value: int) -> str:
    """A whole number with separators.

    >>> count(25557032)
    '25,557,032'
    """
    return f"{value:,}".replace("-", "−")


def short(value: float | None, *, base_unit: str = "") -> str:
    """Three digits and a decimal prefix.

    >>> short(25557032), short(10), short(117698000, base_unit="B")
    ('25.6 M', '10', '118 MB')
    """
    if value is None:
        return NONE
    if isinstance(value, int) and abs(value) < 1000:
        return f"{count(value)} {base_unit}".rstrip()
    size = abs(value)
    for power, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size >= power * 0.9995:
            return f"{_three(value / power)} {prefix}{base_unit}"
    return f"{_three(value)} {base_unit}".rstrip()


def percent(share: float | None, digits: int = 2) -> str:
    """A share of one in percent.

    >>> percent(0.69758), percent(3e-6), percent(None)
    ('69.76 %', '< 0.01 %', '–')
    """
    if share is None:
        return NONE
    if 0 < share < 0.5 * 10 ** -(digits + 2):
        return f"< {10**-digits:.{digits}f} %"
    return f"{100 * share:.{digits}f} %".replace("-", "−")


def points(difference: float) -> str:
    """A difference of two shares in percentage points, with its sign.

    >>> points(-0.0013), points(0.002), points(0.0)
    ('−0.13', '+0.20', '±0.00')
    """
    text = f"{100 * difference:+.2f}"
    return "±0.00" if float(text) == 0 else text.replace("-", "−")


def ratio(value: float | None) -> str:
    """A factor.

    >>> ratio(3.9713)
    '3.97×'
    """
    return NONE if value is None else f"{_three(value)}×"


def number(value: float | None, digits: int = 4) -> str:
    """Any number to some significant digits.

    >>> number(0.0123456), number(-3.0), number(None), number(float("inf"))
    ('0.01235', '−3', '–', '∞')
    """
    if value is None:
        return NONE
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return f"{value:.{digits}g}".replace("-", "−")


def fixed(value: float | None, digits: int) -> str:
    """A number with a fixed count of decimals, so that a column of them lines up.

    >>> fixed(0.999871, 5), fixed(float("inf"), 1)
    ('0.99987', '∞')
    """
    if value is None or not math.isfinite(value):
        return number(value)
    return f"{value:.{digits}f}".replace("-", "−")


def milliseconds(value: float) -> str:
    """A time of one inference.

    >>> milliseconds(11.8123), milliseconds(1480.0)
    ('11.8 ms', '1.48 s')
    """
    return f"{_three(value / 1000)} s" if value >= 999.5 else f"{_three(value)} ms"


def duration(seconds: float) -> str:
    """A time of a run.

    >>> duration(12.34), duration(192), duration(7384)
    ('12.3 s', '3 min 12 s', '2 h 3 min')
    """
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"


def _three(value: float) -> str:
    """Three significant digits without an exponent."""
    if value == 0:
        return "0"
    if not math.isfinite(value):
        return number(value)
    decimals = max(0, 2 - math.floor(math.log10(abs(value) * 1.0005)))
    return f"{value:.{min(decimals, 6)}f}".replace("-", "−")
