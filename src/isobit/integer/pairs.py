"""Pairs: which products of a layer share 16 bits on x86 before VNNI, how far their sums go, and what keeps them in.

`vpmaddubsw` multiplies unsigned bytes of the activation with signed bytes of the weight, adds two neighbours and
saturates. Which are neighbours was measured on ONNX Runtime 1.31 and OpenVINO 2026.4, on AVX2 and AVX-512
(`tools/probe_pairs.py`):

- ONNX Runtime counts products through all of a kernel, the input channel fastest, and adds 0 and 1, 2 and 3, …;
- OpenVINO does so within each position of the kernel, so that the two part where channels are odd in number. Where a
  group has one input channel and several outputs, its order depends on the instruction set: any two are taken;
- depthwise convolutions, one input and one output a group, have kernels of their own that do not saturate; neither do
  unsigned weights, nor those with a zero point on OpenVINO, which it computes in float;
- signed activations are made unsigned first, 128 higher, so that they saturate too. Zero points play no part: they
  are taken off afterwards.
"""

from dataclasses import dataclass
from itertools import combinations
from typing import final

import numpy as np

OFFSET = 128
"""What makes signed bytes unsigned."""


@final
@dataclass(frozen=True, eq=False, slots=True)
class PairedProducts:
    """The products of a layer. `weight` are stored bytes, (outputs, inputs of a group, *kernel), int64.

    `low` and `high` are the levels of each input channel, (groups, inputs of a group), as unsigned bytes.
    """

    weight: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @property
    def partners(self) -> np.ndarray:
        """The pairs that some engine adds, (n, 2), as numbers of products with the channel fastest."""
        outputs, inputs = self.weight.shape[:2]
        count = int(np.prod(self.weight.shape[1:]))
        if inputs == 1 and len(self.low) > 1:  # a group of one channel
            several = outputs > len(self.low)
            return np.array(list(combinations(range(count), 2)) if several else [], np.int64).reshape(-1, 2)
        numbers = np.arange(count)
        through = numbers[: count // 2 * 2].reshape(-1, 2)
        within = numbers.reshape(-1, inputs)[:, : inputs // 2 * 2].reshape(-1, 2)
        return np.unique(np.concatenate([through, within]), axis=0)

    @property
    def rows(self) -> np.ndarray:
        """The weights, (outputs, products), the channel fastest."""
        return np.ascontiguousarray(np.moveaxis(self.weight, 1, -1)).reshape(len(self.weight), -1)

    def levels(self) -> tuple[np.ndarray, np.ndarray]:
        """The lowest and highest level that each weight of `rows` meets, (outputs or 1, products)."""
        positions = int(np.prod(self.weight.shape[2:], dtype=int))
        low, high = (np.tile(v, (1, positions)) for v in (self.low, self.high))
        if len(low) == 1:
            return low, high
        repeats = len(self.weight) // len(low)
        return low.repeat(repeats, axis=0), high.repeat(repeats, axis=0)

    def sums(self) -> tuple[np.ndarray, np.ndarray]:
        """The lowest and the highest sum of each pair, (outputs, pairs): each level is free to be what is worst."""
        rows, (low, high), partners = self.rows, self.levels(), self.partners
        upper, lower = np.maximum(rows * high, rows * low), np.minimum(rows * high, rows * low)
        return (
            lower[:, partners[:, 0]] + lower[:, partners[:, 1]],
            upper[:, partners[:, 0]] + upper[:, partners[:, 1]],
        )

    def worst(self) -> np.ndarray:
        """How far the sums of each output go, (outputs,): a register holds one more below 0 than above."""
        lowest, highest = self.sums()
        if not lowest.shape[1]:
            return np.zeros(len(self.weight), np.int64)
        found: np.ndarray = np.maximum(highest.max(1), -1 - lowest.min(1))
        return found

    def example(self, output: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Two weights of an output whose sum goes farthest, and the levels, as unsigned bytes, at which it does."""
        lowest, highest = (s[output] for s in self.sums())
        above = int(highest.max()) >= -1 - int(lowest.min())
        pair = self.partners[int(highest.argmax() if above else lowest.argmin())]
        low, high = (np.broadcast_to(v, self.rows.shape)[output, pair] for v in self.levels())
        w = self.rows[output, pair]
        levels = np.where((w > 0) == above, high, low)
        return (int(w[0]), int(w[1])), (int(levels[0]), int(levels[1]))

    def within(self, bits: int) -> np.ndarray:
        """The weight with the pairs that leave `bits` bits brought back, each of the two by half: least squares."""
        rows, (_, high) = self.rows, self.levels()
        partners = self.partners
        flagged = np.flatnonzero(self.worst() > (1 << (bits - 1)) - 1)
        high = np.broadcast_to(high, rows.shape)[flagged]
        largest = np.maximum(high[:, partners[:, 0]], high[:, partners[:, 1]]).clip(min=1)
        few, changes = rows[flagged], True
        while changes:  # where one weight is in two pairs, the second look sees what the first has left
            changes = False
            for sign, limit in ((1, (1 << (bits - 1)) - 1), (-1, 1 << (bits - 1))):
                for pairs, most in _apart(partners, limit // largest):
                    changes |= _reduce(few, pairs, most, sign)
        rows = rows.copy()
        rows[flagged] = few
        outputs, inputs, *kernel = self.weight.shape
        return np.ascontiguousarray(np.moveaxis(rows.reshape(outputs, *kernel, inputs), -1, 1))


def _apart(partners: np.ndarray, most: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """The pairs in lots within which no weight comes twice."""
    lots: list[list[int]] = []
    taken: list[set[int]] = []
    for number, (a, b) in enumerate(partners.tolist()):
        lot = next((i for i, t in enumerate(taken) if a not in t and b not in t), len(lots))
        if lot == len(lots):
            lots.append([])
            taken.append(set())
        lots[lot].append(number)
        taken[lot] |= {a, b}
    return [(partners[lot], most[:, lot]) for lot in lots]


def _reduce(rows: np.ndarray, pairs: np.ndarray, most: np.ndarray, sign: int) -> bool:
    """Bring pairs of one sign down to a sum of `most`, in place; whether there were any."""
    a, b = ((sign * rows[:, pairs[:, i]]).clip(min=0) for i in (0, 1))
    excess = (a + b - most).clip(min=0)
    if not excess.any():
        return False
    from_b = np.minimum(excess // 2, b)
    from_a = np.minimum(excess - from_b, a)
    from_b = excess - from_a
    rows[:, pairs[:, 0]] -= sign * from_a
    rows[:, pairs[:, 1]] -= sign * from_b
    return True
