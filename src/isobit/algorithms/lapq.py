"""LAPQ: the steps of all layers are searched together on the loss (Nahshan et al. 2020, arXiv:1911.07190)."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, final, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx

from isobit.analysis.layer_error import tensors_in
from isobit.analysis.modes import slots_in_mode
from isobit.core.batches import Batch, Data, batches
from isobit.core.errors import CalibrationError, SettingError, UnsupportedError
from isobit.core.powell import Vector, powell
from isobit.core.progress import Progress, silent
from isobit.core.qparams import SMALLEST_SCALE, QParams
from isobit.core.records import JointRangesRecord
from isobit.core.scheme import PowerOfTwo
from isobit.graph.folding import weight_and_bias
from isobit.graph.insert import slots
from isobit.graph.slots import Slot, weight_slot
from isobit.observers.mse import mse_range
from isobit.observers.streaming_histogram import StreamingHistogram
from isobit.quantizers.fixed import FixedQuantizer

Loss = Literal["noise", "divergence", "labels"]

UNIT = 0.15
"""The unit of the search in log2 of a step: a tenth of the step. A power of two moves by whole exponents."""


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Lapq:
    """Settings of the search. `powers` are the p of the norms to start from, `evaluations` the most that Powell takes.

    The `loss` is measured on the first `samples` samples: `noise` is the noise over signal of the outputs; the others
    are for networks that return logits (n, classes) alone: `divergence` is the KL divergence from the float network's
    probabilities, which few unsure samples decide, and `labels` the paper's cross-entropy.
    """

    powers: tuple[float, ...] = (2.0, 2.5, 3.0, 3.5, 4.0)
    evaluations: int = 300
    samples: int = 128
    loss: Loss = "noise"

    def __post_init__(self) -> None:
        if self.samples < 1 or self.evaluations < 1:
            raise SettingError("a joint search of ranges needs at least 1 sample and 1 evaluation")
        if self.loss not in get_args(Loss):
            raise SettingError(f"loss has to be one of {', '.join(get_args(Loss))}, got {self.loss!r}")
        if not self.powers or min(self.powers) <= 0:
            raise SettingError(f"powers have to be above 0, and at least one, got {self.powers!r}")

    def apply(self, model: fx.GraphModule, data: Data, *, progress: Progress = silent) -> JointRangesRecord:
        """Give a calibrated network the steps of least loss found, in place; never a greater loss than before.

        First those of least |x - x̂|^p for each of `powers`, and for the p where a parabola through their losses is
        least (section 4.1); then, from the best, Powell's method over a factor for each slot (section 4.2). A slot
        that several tensors share is one variable, and so are all channels of a weight.

        Raises UnsupportedError without static quantizers, CalibrationError for unfit data.
        """
        model.eval()
        searched = [s for s in slots(model) if isinstance(s.quantizer, FixedQuantizer) and s.mode == "quantize"]
        if not searched:
            raise UnsupportedError(
                "a joint search of ranges moves the steps of `fixed` quantizers, and this model has none: leave "
                "joint_ranges out, or use `fixed`"
            )
        with torch.no_grad():
            samples = _first(data, self.samples)
            loss = _Measure(model, samples, self.loss)
            before = loss()
            start, power = self._start(model, samples, searched, loss, before)
            first = loss()
            after, spent = self._search(searched, start, loss, progress)
        left = tuple(s.point for s in slots(model) if s not in searched)
        return JointRangesRecord(
            loss=self.loss, samples=sum(b.size for b in samples), before=before, start=first, after=after,
            power=power, variables=len(searched), evaluations=spent, left=left,
        )  # fmt: skip

    def _start(
        self, model: fx.GraphModule, samples: list[Batch], searched: list[Slot], loss: "_Measure", before: float
    ) -> tuple[dict[Slot, QParams], float | None]:
        """The best of the present steps and those of the norms, set in the model; and its p, None for the present."""
        seen = _histograms(model, samples, searched)
        losses: dict[float, float] = {}
        found: dict[float | None, tuple[float, dict[Slot, QParams]]] = {None: (before, _grids(searched))}

        def measure(power: float) -> None:
            for slot, histogram in seen.items():
                q = histogram.qparams_from(lambda part, scheme: mse_range(part, scheme, power=power, steps=100))
                _set(slot, q)
            losses[power] = loss()
            found[power] = (losses[power], _grids(searched))

        for power in self.powers:
            measure(power)
        if (vertex := lowest_power(losses)) is not None and vertex not in losses:
            measure(vertex)
        best = min(found, key=lambda power: found[power][0])
        for slot, q in found[best][1].items():
            _set(slot, q)
        return found[best][1], best

    def _search(
        self, searched: list[Slot], start: dict[Slot, QParams], loss: "_Measure", progress: Progress
    ) -> tuple[float, int]:
        """Powell's method over log2 of a factor for each step, set to the best; its loss, and the evaluations."""
        done = 0

        def at(x: Vector) -> float:
            nonlocal done
            for slot, value in zip(searched, x.tolist(), strict=True):
                _set(slot, scaled(start[slot], value))
            done += 1
            progress("searching ranges", done, self.evaluations)
            return loss()

        best, value, spent = powell(at, np.zeros(len(searched)), step=1.0, evaluations=self.evaluations, tolerance=1e-3)
        for slot, x in zip(searched, best.tolist(), strict=True):
            _set(slot, scaled(start[slot], x))
        return value, spent


def lowest_power(losses: dict[float, float]) -> float | None:
    """The p where the parabola through the losses is least, inside the powers tried; None where it has no minimum.

    >>> lowest_power({2.0: 1.0, 3.0: 0.0, 4.0: 1.0})
    3.0
    """
    if len(losses) < 3 or not all(np.isfinite(list(losses.values()))):
        return None
    square, linear, _ = np.polyfit(list(losses), list(losses.values()), 2)
    if square <= 0:
        return None
    return round(float(np.clip(-linear / (2 * square), min(losses), max(losses))), 3)


def scaled(q: QParams, value: float) -> QParams:
    """The parameters with the scale times 2^(`UNIT` value), or 2^round(value) where it is a power of two."""
    exponent = round(value) if isinstance(q.scheme.scale, PowerOfTwo) else UNIT * value
    return QParams((q.scale * 2.0**exponent).clamp(min=SMALLEST_SCALE), q.zero_point, q.scheme, q.codebook)


@final
class _Measure:
    """The loss of a model as it is now, on some samples."""

    def __init__(self, model: fx.GraphModule, samples: list[Batch], loss: Loss) -> None:
        self._model, self._samples = model, samples
        with slots_in_mode(model, "float"):
            self._exact = [_outputs(model, batch) for batch in samples]
        if loss != "noise" and not all(len(y) == 1 and y[0].dim() == 2 for y in self._exact):
            raise UnsupportedError(
                f"the loss {loss!r} needs a network that returns logits (n, classes) alone: use `noise`"
            )
        if loss == "labels" and any(batch.labels is None for batch in samples):
            raise CalibrationError(
                "the loss 'labels' needs a label for each sample: give (inputs, labels), or use `noise`"
            )
        self._of = LOSSES[loss]

    def __call__(self) -> float:
        pairs = [
            self._of(_outputs(self._model, batch), exact, batch)
            for batch, exact in zip(self._samples, self._exact, strict=True)
        ]
        value = sum(loss for loss, _ in pairs) / max(sum(weight for _, weight in pairs), 1e-30)
        return value if np.isfinite(value) else float("inf")


def _divergence(found: list[Tensor], exact: list[Tensor], batch: Batch) -> tuple[float, float]:
    p, q = exact[0].double().log_softmax(1), found[0].double().log_softmax(1)
    return float(F.kl_div(q, p, reduction="sum", log_target=True)), batch.size


def _cross_entropy(found: list[Tensor], exact: list[Tensor], batch: Batch) -> tuple[float, float]:
    del exact
    assert batch.labels is not None
    return float(F.cross_entropy(found[0].double(), batch.labels.long(), reduction="sum")), batch.size


def _noise(found: list[Tensor], exact: list[Tensor], batch: Batch) -> tuple[float, float]:
    del batch
    noise = sum(float((y - z).double().square().sum()) for y, z in zip(found, exact, strict=True))
    return noise, sum(float(z.double().square().sum()) for z in exact)


LOSSES: dict[Loss, Callable[[list[Tensor], list[Tensor], Batch], tuple[float, float]]] = {
    "noise": _noise,
    "divergence": _divergence,
    "labels": _cross_entropy,
}
"""From the outputs found, those of the float network and the batch, to a sum and what it is divided by."""


def _outputs(model: fx.GraphModule, batch: Batch) -> list[Tensor]:
    found: Any = model(*batch.inputs)
    return [y for y in tensors_in(found) if y.is_floating_point()]


def _first(data: Data, count: int) -> list[Batch]:
    """The first samples of the data, in batches."""
    found, left = [], count
    for batch in islice(batches(data), count):
        taken = Batch(tuple(x[:left] for x in batch.inputs), None if batch.labels is None else batch.labels[:left])
        found.append(taken)
        left -= taken.size
        if left <= 0:
            break
    return found


def _histograms(model: fx.GraphModule, samples: list[Batch], searched: list[Slot]) -> dict[Slot, StreamingHistogram]:
    """What passes each slot in the float network."""
    seen = {slot: StreamingHistogram(slot.quantizer.scheme) for slot in searched}  # type: ignore[arg-type]
    weights = set()
    for layer in model.modules():
        slot = weight_slot(layer)
        if slot in seen and slot not in weights:
            seen[slot].see(weight_and_bias(layer)[0].detach())
            weights.add(slot)
    hooks = [
        slot.register_forward_pre_hook(lambda slot, x: seen[slot].see(x[0])) for slot in searched if slot not in weights
    ]
    try:
        with slots_in_mode(model, "float"):
            for batch in samples:
                model(*batch.inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _grids(searched: list[Slot]) -> dict[Slot, QParams]:
    return {slot: slot.quantizer.grid() for slot in searched}  # type: ignore[operator]


def _set(slot: Slot, q: QParams) -> None:
    slot.quantizer.calibrate(q)  # type: ignore[operator]
