"""Risks: what the weights alone prove about sums that leave their registers, as plain records, and what was changed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

REMEDY = "Quantize with avoid_saturation (--avoid-saturation), which changes those channels alone"
"""What to do about pairs of products that can saturate."""

NO_OVERFLOW = "no accumulator can overflow, proved from the weights"
NO_ACCUMULATORS = "no integer accumulators exist: every layer sums in float"


@dataclass(frozen=True, kw_only=True)
class OverflowRisk:
    """A layer whose integers can leave their registers: an accumulator of 32 bits, or a pair sum of 16.

    `outputs` is the number of all channels. For a pair, `weights` and `levels` are the two of each that go farthest:
    their products sum to `worst`, or to `worst` and one more below 0. Levels are unsigned bytes, as engines multiply
    them: signed ones are 128 higher than in the file.
    """

    layer: str
    kind: Literal["accumulator", "pair"]
    channels: tuple[int, ...]
    worst: int
    limit: int
    outputs: int = 0
    weights: tuple[int, ...] = ()
    levels: tuple[int, ...] = ()

    def __str__(self) -> str:
        many = f"{len(self.channels)} of {self.outputs} channels" if self.outputs else f"{len(self.channels)} channels"
        if not self.weights:
            return f"{self.layer}: {self.kind} up to {self.worst:,}, limit {self.limit:,}, in {many}"
        products = " + ".join(f"{a}·{w}" for a, w in zip(self.levels, self.weights, strict=True))
        return f"{self.layer}: {many}, {products.replace('+ -', '- ')} leaves {self.limit.bit_length() + 1} bits"


@dataclass(frozen=True, kw_only=True)
class SaturationRecord:
    """A layer whose channels were changed, so that none of their sums leaves its register.

    `factor` is the largest by which a channel's step grew for its pairs: 2 is one bit less. `filled` channels have a
    bias that fills an accumulator of the steps before; those grew as much as needed. `clamped` weights were moved to
    a level that is not the nearest.
    """

    layer: str
    channels: tuple[int, ...]
    outputs: int
    factor: float
    clamped: int
    filled: int = 0


def pair_text(risks: Sequence[OverflowRisk], *, shown: int = 3) -> str:
    """How many channels of how many layers can saturate, and the first of them; empty where none can."""
    pairs = [r for r in risks if r.kind == "pair"]
    if not pairs:
        return ""
    channels, outputs = sum(len(r.channels) for r in pairs), sum(r.outputs for r in pairs)
    text = f"pairs of products can saturate in {channels:,} of {outputs:,} channels of {len(pairs)} layers: "
    return text + "; ".join(map(str, pairs[:shown])) + ("; …" if len(pairs) > shown else "")


def overflow_lines(
    here: Sequence[OverflowRisk], older: Sequence[OverflowRisk], accumulators: int | None = None
) -> list[tuple[str, str]]:
    """What is proved for this machine, and for x86 before VNNI where that is more: headings and sentences.

    `accumulators` is the number of layers that sum integers; None where it is not known.
    """
    can = [str(r) for r in here if r.kind == "accumulator"]
    said = can[:6] + ["…"] * (len(can) > 6) or [NO_ACCUMULATORS if accumulators == 0 else NO_OVERFLOW]
    if text := pair_text(here):
        said.append(f"{text}. {REMEDY}")
    lines = [("overflow", "; ".join(said))]
    if text := pair_text(older):
        lines.append(("x86 before VNNI", f"{text}. {REMEDY}"))
    return lines


@dataclass(frozen=True, kw_only=True)
class ExactRecord:
    """What the scales of a network that is exact by construction guarantee, and what they cost.

    All results of `ops` ops are `margin` of a step or more from the middles of levels. Half of all steps grew by at
    most `median`; `dear` of `steps` by more than 5 %: channels with hardly any weights. Nothing holds for the ops of
    `left`, whose ratios have other denominators, nor where `in_float` ops compute with floats. `inputs` is said of each
    input.
    """

    ops: int
    margin: float
    median: float
    steps: int
    dear: int = 0
    left: tuple[str, ...] = ()
    in_float: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()

    def lines(self) -> tuple[str, ...]:
        """What to tell a person."""
        kept = f"the results of {self.ops:,} ops keep {self.margin:.2g} of a step from the middles of levels"
        price = f"half of the steps grew by at most {self.median:.2%}, {self.dear:,} of {self.steps:,} by more than 5 %"
        said = [f"exact: {kept}; {price}", *(f"exact: {line}" for line in self.inputs)]
        for names, text in (
            (self.left, "nothing holds for"),
            (self.in_float, "nothing holds where floats are computed:"),
        ):
            if names:
                said.append(f"exact: {text} {', '.join(names[:6])}{', …' if len(names) > 6 else ''}")
        return tuple(said)
