"""Powell's method: a minimum without derivatives, along directions that become conjugate (Powell 1964)."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]

GROWTH = 1.618
"""By how much a step that helped grows."""

REACH = 6
"""Steps at most along one line."""


FINEST = 64
"""The first step over the smallest."""


class _SpentError(Exception):
    """All evaluations are spent."""


def powell(
    function: Callable[[Vector], float], start: Vector, *, step: float, evaluations: int, tolerance: float = 1e-4
) -> tuple[Vector, float, int]:
    """The best point found, its value and the evaluations it took, at most `evaluations`, that of the start included.

    Each sweep searches along every direction, first the axes. The way of a whole sweep then replaces the direction that
    gave most, where Powell's test says so (The Computer Journal 7, 1964, section 5). A sweep that gained
    less than `tolerance` of the value makes the step smaller; the end is one with the smallest.

    >>> point, value, _ = powell(lambda x: float((x - 3) @ (x - 3)), np.zeros(2), step=1.0, evaluations=100)
    >>> point.round(6).tolist(), round(value, 9)
    ([3.0, 3.0], 0.0)
    """
    spent, best, smallest = 0, (start, np.inf), step / FINEST

    def counted(x: Vector) -> float:
        nonlocal spent, best
        if spent >= evaluations:
            raise _SpentError
        spent += 1
        value = function(x)
        best = (x, value) if value < best[1] else best
        return value

    try:
        x, value = start, counted(start)
        directions = list(np.eye(len(start)))
        while True:
            old, before, drops = x, value, []
            for direction in directions:
                last = value
                x, value = _along(counted, x, value, direction, step)
                drops.append(last - value)
            way, most = x - old, int(np.argmax(drops))
            if before - value <= tolerance * abs(before):
                if step <= smallest:
                    break
                step /= 4
                continue
            beyond = counted(x + way)
            bend = 2 * (before - 2 * value + beyond) * (before - value - drops[most]) ** 2
            if beyond < before and bend < drops[most] * (before - beyond) ** 2:
                directions[most] = way / np.abs(way).max()
                x, value = _along(counted, x, value, directions[most], step)
    except _SpentError:
        pass
    return best[0], best[1], spent


def _along(
    function: Callable[[Vector], float], x: Vector, value: float, direction: Vector, step: float
) -> tuple[Vector, float]:
    """The best of a step to either side, longer ones where that helped, and the vertex of the parabola at the end."""
    known = {0.0: value}

    def at(t: float) -> float:
        known[t] = function(x + t * direction)
        return known[t]

    t = step if at(step) < value else -step
    if t > 0 or at(t) < value:
        for _ in range(REACH):
            if at(t * (1 + GROWTH)) >= known[t]:
                break
            t *= 1 + GROWTH
    best = min(known, key=lambda t: known[t])
    below, above = [t for t in known if t < best], [t for t in known if t > best]
    if below and above:
        vertex = _vertex(*((t, known[t]) for t in (max(below), best, min(above))))
        if vertex is not None and vertex not in known:
            at(vertex)
    best = min(known, key=lambda t: known[t])
    return (x + best * direction if best else x), known[best]


def _vertex(left: tuple[float, float], middle: tuple[float, float], right: tuple[float, float]) -> float | None:
    """Where the parabola through three points, of which the middle one is lowest, is least; None where it is flat."""
    (a, fa), (b, fb), (c, fc) = left, middle, right
    first, second = (b - a) * (fb - fc), (b - c) * (fb - fa)
    if first == second:
        return None
    return b - ((b - a) * first - (b - c) * second) / (2 * (first - second))
