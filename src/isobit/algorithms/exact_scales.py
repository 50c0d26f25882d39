"""Exact by construction: scales with which no result of an integer op lies on, or near, the middle of two levels.

Engines rescale a sum of integers by the ratio r = s_x · s_w / s_y and round. They differ in how they multiply (a float,
a reciprocal, a fixed-point number), in what they fuse, and in where a middle goes: to the even level, up, or away from
zero. With r = a / b, where b is odd, the exact result is a multiple of 1 / b and never a middle: it keeps 1 / (2 b) of
a step from all of them, which is more than any of them errs. So all round alike, and the float simulation with them.
Kernels that round twice (gemmlowp's, which LiteRT's reference has) err by more, and stay apart.
"""

from collections.abc import Sequence
from fractions import Fraction
from math import gcd, inf, lcm
from typing import final

import numpy as np
import torch
from torch import fx

from isobit.algorithms.saturation import scaled
from isobit.analysis.rescaling import Operand, Rescaled, ratios, rescaling, scale_of
from isobit.core.batches import Data, batches
from isobit.core.errors import UnsupportedError
from isobit.core.qparams import QParams
from isobit.core.risks import ExactRecord
from isobit.core.scheme import PowerOfTwo
from isobit.graph.insert import preparation
from isobit.graph.slots import Slot, weight_slot

LIMIT = 1023
"""The largest denominator: float32 errs by a twentieth of 1 / (2 · 1023) in what 8 bits hold."""

WIDEST = 4095
"""The same where a channel's steps would otherwise grow by more than `PRICE`; a third of 1 / (2 · 4095)."""

PRICE = 0.01
"""By how much a step may grow before a larger denominator is taken."""

CHAINED = 15
"""The largest denominator between the residual and the sum: those of weights that are added to it are multiples."""

DISTINCT = 1 << 16
"""So many different values of an input can be kept from middles, such as those of images of 8 bits."""


@torch.no_grad()
def settle_scales(model: fx.GraphModule, data: Data) -> None:
    """Choose the scales of a calibrated model, in place, before its weights are rounded. Steps grow, as a rule by 1 in
    1,000.

    Raises UnsupportedError for a target with scales that are powers of two, whose results are middles too often.
    """
    profile = preparation(model).profile
    if any(isinstance(scheme.scale, PowerOfTwo) for scheme in (profile.weight, profile.activation)):
        raise UnsupportedError(
            f"{profile.name} has scales that are powers of two: their results are middles of two levels, which engines "
            "round differently. Leave exact out for this target"
        )
    found = rescaling(model)
    values = _values(found.inputs, data)
    for slot, index in found.inputs:
        if (seen := values[index]) is not None and len(seen):
            _rescale(model.get_submodule(slot), _clear(seen, scale_of(model, slot)))
    chosen = _Chosen(model, start=[slot for slot, _ in found.inputs])
    denominators = {op.output: chosen.add(op) for op in found.ops if op.kind == "add"}
    for op in found.ops:
        if op.kind != "add" and not any(operand.layer for operand in op.operands):
            chosen.rescale(op)
    chosen.apply()
    model.meta["exact_inputs"] = tuple(_said(model, slot, values[index]) for slot, index in found.inputs)
    settled: set[str] = set()
    for op in found.ops:
        for index, operand in enumerate(op.operands):
            if operand.layer and operand.layer not in settled:
                settled.add(operand.layer)
                base = denominators.get(op.output, 1) if op.kind == "add" else 1
                _settle_weight(model, operand, ratios(model, op)[:, index], base)
    model.meta["exact_left"] = _unsettled(model, found.ops)[0]


def _unsettled(model: fx.GraphModule, ops: Sequence[Rescaled]) -> tuple[list[str], float]:
    """The ops whose results may be middles, and the least distance from one of the others."""
    left, least = [], inf
    for op in ops:
        denominator = common_denominator(ratios(model, op))
        if denominator % 2 and denominator <= WIDEST:
            least = min(least, 0.5 / denominator)
        else:
            left.append(f"{op.name} ({op.kind})")
    return left, least


@torch.no_grad()
def check_scales(model: fx.GraphModule, before: dict[str, np.ndarray]) -> ExactRecord:
    """What the scales of a finished model guarantee; `before` are the scales that calibration found, by slot.

    Raises UnsupportedError where something has changed them since.
    """
    found = rescaling(model)
    left, least = _unsettled(model, found.ops)
    if moved := [name for name in left if name not in model.meta["exact_left"]]:
        raise UnsupportedError(
            f"{moved[0]}: its scales have changed since they were chosen. `exact` takes a reconstruction that keeps "
            "them, such as gptq or adaround"
        )
    growth = np.concatenate([(scale / before[name]).reshape(-1) - 1 for name, scale in scales(model).items()])
    record = ExactRecord(
        ops=len(found.ops) - len(left),
        margin=least,
        median=float(np.median(growth)),
        steps=len(growth),
        dear=int((growth > 0.05).sum()),
        left=tuple(left),
        in_float=found.in_float,
        inputs=tuple(model.meta.get("exact_inputs", ())),
    )
    model.meta["notes"] = (*model.meta.get("notes", ()), *record.lines())
    return record


def scales(model: fx.GraphModule) -> dict[str, np.ndarray]:
    """The scales of all static quantizers, by the name of what they quantize."""
    found = {}
    for module in model.modules():
        if isinstance(module, Slot) and isinstance(grid := module.grid(), QParams):
            found[module.point] = grid.scale.detach().double().numpy().copy()
    return found


def common_denominator(ratios: np.ndarray) -> int:
    """The largest of the rows' smallest common denominators; 0 where a ratio is none of small integers.

    >>> common_denominator(np.array([[2 / 3, 1.0], [0.4, 3.0]])), common_denominator(np.array([[1 / 3, 0.1]]))
    (5, 30)
    """
    largest = 1
    for row in ratios:
        fractions = [Fraction(float(r)).limit_denominator(WIDEST) for r in row]
        if any(abs(float(f) / r - 1) > 2.0**-22 for f, r in zip(fractions, row, strict=True)):
            return 0
        here = lcm(*(f.denominator for f in fractions))
        if here % 2 == 0:
            return here
        largest = max(largest, here)
    return largest


def odd_ratio(
    wanted: np.ndarray | float, *, base: int = 1, limit: int = LIMIT, down: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest a / b not below `wanted` (with `down`, not above); b, within `limit`, is an odd multiple of `base`.

    >>> a, b = odd_ratio(np.array([0.3333, 0.5, 0.7]), limit=9)
    >>> a.tolist(), b.tolist()
    ([1, 5, 5], [3, 9, 7])
    """
    r = np.asarray(wanted, np.float64).reshape(-1)
    b = base * np.arange(1, max(limit // base, 1) + 1, 2)
    a = np.floor(r[:, None] * b * (1 + 1e-12)) if down else np.maximum(np.ceil(r[:, None] * b * (1 - 1e-12)), 1)
    with np.errstate(divide="ignore"):
        growth = r[:, None] * b / a if down else a / (r[:, None] * b)
    best = growth.argmin(1)
    return a[np.arange(len(r)), best].astype(np.int64), b[best]


@final
class _Chosen:
    """New scales of activations. Those that meet in sums are whole ratios of each other: a base times a fraction."""

    def __init__(self, model: fx.GraphModule, *, start: Sequence[str]) -> None:
        """`start` are slots whose scales are chosen already."""
        self._model = model
        self._base: dict[str, float] = {}
        self._place: dict[str, tuple[str, Fraction]] = {}
        for slot in start:
            self._start(slot)

    def scale(self, slot: str) -> float:
        """As chosen, or as calibrated."""
        if slot not in self._place:
            return scale_of(self._model, slot)
        base, fraction = self._place[slot]
        return self._base[base] * float(fraction)

    def add(self, op: Rescaled) -> int:
        """Choose the scales of a sum and of its operands; the common denominator of their ratios."""
        y, slots = op.output, [operand.slots[0] for operand in op.operands if not operand.layer]
        placed = [slot for slot in slots if slot in self._place]
        if y not in self._place:
            if placed:
                self._place_sum(y, placed, down=op.capped)
            else:
                self._start(y)
        denominator = 1
        for slot in slots:
            if slot in self._place and self._place[slot][0] != self._place[y][0]:
                self._join(slot, y)
            if slot in self._place:
                denominator = lcm(denominator, self._fraction(slot, y).denominator)
        for slot in slots:
            if slot not in self._place:
                base = denominator if denominator % 2 else 1
                limit = CHAINED if any(operand.layer for operand in op.operands) else LIMIT
                a, b = odd_ratio(self.scale(slot) / self.scale(y), base=base, limit=max(limit, base))
                self._follow(slot, y, Fraction(int(a[0]), int(b[0])))
                denominator = lcm(denominator, self._fraction(slot, y).denominator)
        return denominator

    def rescale(self, op: Rescaled) -> None:
        """Choose the scale of what one product of integers, or a mean of them, is rounded to."""
        if op.output in self._place:
            return
        (operand,) = op.operands
        y = self.scale(op.output)
        r = float(np.prod([self.scale(slot) for slot in operand.slots])) / operand.count / y
        a, b = odd_ratio(r, down=not op.capped)
        if a[0] > 0:
            self._start(op.output)
            self._base[op.output] = y * r * float(b[0]) / float(a[0])

    def apply(self) -> None:
        """Give the quantizers their scales."""
        for slot in self._place:
            _rescale(self._model.get_submodule(slot), self.scale(slot))

    def _start(self, slot: str) -> None:
        self._base[slot] = scale_of(self._model, slot)
        self._place[slot] = (slot, Fraction(1))

    def _follow(self, slot: str, other: str, fraction: Fraction) -> None:
        base, place = self._place[other]
        self._place[slot] = (base, place * fraction)

    def _fraction(self, slot: str, other: str) -> Fraction:
        return self._place[slot][1] / self._place[other][1]

    def _place_sum(self, y: str, placed: list[str], *, down: bool) -> None:
        """The scale of a sum, by those of the operands that have theirs: nearest where all ratios are small and odd."""
        first = placed[0]
        others = [slot for slot in placed[1:] if self._place[slot][0] == self._place[first][0]]
        wanted, best = self.scale(y) / self.scale(first), (inf, Fraction(1))
        for d in range(1, CHAINED + 1, 2):
            n = max(int(np.ceil(d / wanted) if down else np.floor(d / wanted)), 1)
            together = [self._fraction(slot, first) * Fraction(n, d) for slot in others]
            common = lcm(d // gcd(d, n), *(f.denominator for f in together))
            growth = max(d / n / wanted, wanted * n / d)
            cost = growth if common % 2 and common <= LIMIT else growth * 1e3
            if cost < best[0] - PRICE / 4:  # a small denominator is worth something
                best = (cost, Fraction(d, n))
        if best[0] > 1 + 10 * PRICE and not others:
            a, b = odd_ratio(1 / wanted, down=not down)
            best = (1.0, Fraction(int(b[0]), max(int(a[0]), 1)))
        self._follow(y, first, best[1])

    def _join(self, slot: str, y: str) -> None:
        """Let everything that hangs together with a slot grow until its scale is a whole ratio of that of a sum."""
        a, b = odd_ratio(self.scale(slot) / self.scale(y), limit=CHAINED)
        fraction, old = Fraction(int(a[0]), int(b[0])), self._place[slot]
        for other, (base, place) in list(self._place.items()):
            if base == old[0]:
                self._follow(other, y, fraction * place / old[1])


def _settle_weight(model: fx.GraphModule, operand: Operand, wanted: np.ndarray, base: int) -> None:
    """Let the steps of a weight grow until each channel's ratio has an odd denominator, a multiple of `base`."""
    slot = weight_slot(model.get_submodule(operand.layer))
    assert slot is not None
    grid = slot.grid()
    assert isinstance(grid, QParams)
    if base % 2 == 0:
        return
    wanted = wanted if grid.scale.dim() else wanted[:1]
    a, b = odd_ratio(wanted, base=base)
    wide = odd_ratio(wanted, base=base, limit=WIDEST)
    dear = a / b > wanted * (1 + PRICE)
    ratio = np.where(dear, wide[0] / wide[1], a / b)
    slot.quantizer.calibrate(scaled(grid, ratio / wanted))  # type: ignore[operator]


def _rescale(slot: object, scale: float) -> None:
    """Give an activation another scale; where it has a zero point, its lowest value stays."""
    assert isinstance(slot, Slot)
    grid = slot.grid()
    assert isinstance(grid, QParams)
    new, scheme = torch.tensor(scale, dtype=grid.scale.dtype).reshape(grid.scale.shape), grid.scheme
    zero_point = grid.zero_point
    if not scheme.symmetric:
        above = (zero_point - scheme.quant_min).double() * grid.scale.double() / new.double()
        zero_point = (above.round() + scheme.quant_min).clamp(scheme.quant_min, scheme.quant_max).to(zero_point.dtype)
    slot.quantizer.calibrate(QParams(new, zero_point, scheme))  # type: ignore[operator]


def _values(inputs: tuple[tuple[str, int], ...], data: Data) -> dict[int, np.ndarray | None]:
    """The different values of each input of the network, ascending; None where they are many."""
    values: dict[int, np.ndarray | None] = {index: np.zeros(0, np.float32) for _, index in inputs}
    for batch in batches(data):
        for index, held in values.items():
            if held is not None:
                both = np.union1d(held, batch.inputs[index].numpy().astype(np.float32))
                values[index] = both if len(both) <= DISTINCT else None
    return values


def _said(model: fx.GraphModule, slot: str, values: np.ndarray | None) -> str:
    """How far the values of an input are from the middles of levels."""
    module = model.get_submodule(slot)
    assert isinstance(module, Slot)
    if values is None:
        return f"{module.point} has more than {DISTINCT:,} different values, which may be middles of two levels"
    distance = _distance(values, scale_of(model, slot))
    return f"the {len(values):,} values of {module.point} keep {distance:.2g} of a step from middles"


def _clear(values: np.ndarray, scale: float) -> float:
    """The scale, of those up to 1 % larger, at which the values are farthest from the middles of levels."""
    return max((scale * (1 + PRICE * i / 200) for i in range(201)), key=lambda s: _distance(values, s))


def _distance(values: np.ndarray, scale: float) -> float:
    """Of the value that is nearest to the middle of two levels, in steps."""
    steps = values.astype(np.float64) / np.float64(np.float32(scale))
    return float(np.abs(steps - np.floor(steps) - 0.5).min(initial=0.5))
