"""Reconstruction: learn roundings and steps so that each segment's output is the float network's, one by one.

What AdaRound, BRECQ and QDrop share: the segments' inputs and outputs for all calibration samples, the losses, the
schedule. Each algorithm is a file of settings.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor, fx, nn

from isobit.algorithms.activation_cache import (
    ActivationCache,
    Values,
    cached_inputs,
    execute,
    run_segment,
    segment_error,
    slots_of,
)
from isobit.algorithms.fisher import fisher
from isobit.algorithms.reconstruction_progress import Done, replace_weight, rescale
from isobit.algorithms.soft_quantizers import LearnedStep, SoftRounding
from isobit.core.batches import Data
from isobit.core.errors import SettingError, UnsupportedError
from isobit.core.grid import Uniform
from isobit.core.progress import Progress, silent
from isobit.core.qparams import QParams
from isobit.core.records import SegmentRecord
from isobit.core.scheme import FloatScale
from isobit.core.soft_rounding import annealed, half_cosine, undecided
from isobit.graph.segments import Segment, Unit, segments
from isobit.graph.slots import Slot, weight_slot
from isobit.quantizers.fixed import FixedQuantizer

Weighting = Literal["none", "fisher"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Reconstruction:
    """Settings of a reconstruction. Rates are Adam's; that of the steps, which start at 1, falls along half a cosine.

    `step_rate` 0 leaves the steps of activations as calibrated. `quantized` is the probability with which each element
    of an activation is quantized while a segment learns. `regularization` times `undecided` is added to the loss after
    the share `warm_up` of the iterations, its exponent falling from `beta[0]` to `beta[1]`. `memory_limit` (bytes) is
    for what flows between segments; more goes into temporary files.
    """

    unit: Unit
    iterations: int = 400
    batch_size: int = 32
    learning_rate: float = 1e-2
    step_rate: float = 0.0
    quantized: float = 1.0
    weighting: Weighting = "none"
    regularization: float = 0.01
    beta: tuple[float, float] = (20.0, 2.0)
    warm_up: float = 0.2
    memory_limit: int = 4 << 30
    seed: int = 0

    def __post_init__(self) -> None:
        if self.iterations < 1 or self.batch_size < 1:
            raise SettingError("a reconstruction needs at least 1 iteration and 1 sample in a batch")
        if not 0 < self.quantized <= 1:
            raise SettingError(f"quantized has to be a probability above 0, up to 1, got {self.quantized}")


class Reconstructs(Protocol):
    """Settings of an algorithm that reconstructs a network segment by segment; `unit` says what a segment is."""

    unit: ClassVar[Unit]

    def apply(
        self,
        model: fx.GraphModule,
        data: Data,
        *,
        seed: int = 0,
        checkpoint: Path | None = None,
        progress: Progress = silent,
    ) -> tuple[SegmentRecord, ...]:
        """Reconstruct a calibrated network in place; with `checkpoint` it goes on behind what is done there."""


def reconstruct(
    model: fx.GraphModule,
    data: Data,
    settings: Reconstruction,
    *,
    checkpoint: Path | None = None,
    progress: Progress = silent,
) -> tuple[SegmentRecord, ...]:
    """Reconstruct a calibrated network in place, segment by segment; what was gained in each.

    Inputs come from the quantized segments before, targets from the float network. A segment that gains nothing over
    rounding to nearest keeps that, as does a layer that is called more than once. With `checkpoint`, each segment is
    written there, and a run that was interrupted goes on behind the last one, with the same result.

    Raises UnsupportedError, with the layer's name, for quantizers without even steps; CalibrationError for unfit data;
    ArtifactError for a checkpoint of another run.
    """
    model.eval()
    parts = segments(model, settings.unit)
    _check(model, parts)
    exact, rounded = cached_inputs(model, data, settings.memory_limit)
    done = Done(checkpoint, model, exact, settings)
    for number, part in enumerate(parts):
        later = {n for p in parts[number + 1 :] for n in p.inputs}
        with torch.no_grad(), slots_of(model, part.nodes, "float"):
            run_segment(model, part, exact)
        if not done.restore(model, number):
            record = _reconstruct_one(model, part, exact, rounded, settings, number)
            done.add(model, part, record)
        with torch.no_grad(), slots_of(model, part.nodes, "quantize"):
            run_segment(model, part, rounded)
        for cache in (exact, rounded):
            cache.keep(later)
        progress("reconstructing", number + 1, len(parts))
    return done.records


def _reconstruct_one(
    model: fx.GraphModule,
    part: Segment,
    exact: ActivationCache,
    rounded: ActivationCache,
    settings: Reconstruction,
    number: int,
) -> SegmentRecord:
    generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + number)
    nearest = segment_error(model, part, exact, rounded)
    importance = fisher(model, part, exact, rounded) if settings.weighting == "fisher" else None
    kept = {name: model.get_parameter(f"{name}.weight").detach().clone() for name in part.layers}
    weights, steps = _soften(model, part, settings, generator)
    quantizers = {slot: slot.quantizer for slot in (*weights, *steps)}
    for slot, learner in (*weights.items(), *steps.items()):
        slot.quantizer = learner
    try:
        _learn(model, part, (exact, rounded, importance), settings, (weights, steps), generator)
    finally:
        for slot, quantizer in quantizers.items():
            slot.quantizer = quantizer
    before = {slot: step.start for slot, step in steps.items()}
    for name, soft in zip(part.layers, weights.values(), strict=True):
        replace_weight(model, name, soft.hard())
    for slot, step in steps.items():
        rescale(slot, step.scale().detach())
    learned = segment_error(model, part, exact, rounded)
    if not learned < nearest:
        for (name, weight), slot in zip(kept.items(), weights, strict=True):
            replace_weight(model, name, weight)
            slot.original = None
        for slot, scale in before.items():
            rescale(slot, scale)
    return SegmentRecord(name=part.name, layers=part.layers, nearest=nearest, learned=learned)


def _learn(
    model: fx.GraphModule,
    part: Segment,
    caches: tuple[ActivationCache, ActivationCache, Tensor | None],
    settings: Reconstruction,
    soft: tuple[dict[Slot, SoftRounding], dict[Slot, LearnedStep]],
    generator: torch.Generator,
) -> None:
    (exact, rounded, importance), (weights, steps) = caches, soft
    roundings = [w.v for w in weights.values()]
    learned = [s.r for s in steps.values() if s.r.requires_grad]
    groups = [{"params": roundings, "lr": settings.learning_rate}]
    groups += [{"params": learned, "lr": settings.step_rate}] if learned else []
    optimizer = torch.optim.Adam(groups)
    order = torch.empty(0, dtype=torch.int64)
    for iteration in range(settings.iterations):
        if len(order) < min(settings.batch_size, exact.samples):
            order = torch.randperm(exact.samples, generator=generator)
        index, order = order[: settings.batch_size], order[settings.batch_size :]
        inputs = _mixed(part, exact, rounded, index, settings.quantized, generator)
        result = execute(model, part.nodes, inputs)[part.result]
        target = exact.batch((part.result,), index)[part.result]
        weight = None if importance is None else importance[index]
        loss = distance(result, target, weight, axis=channel_axis(model, part, result))
        progress = iteration / max(settings.iterations - 1, 1)
        if progress >= settings.warm_up:
            beta = annealed(progress, warm_up=settings.warm_up, first=settings.beta[0], last=settings.beta[1])
            loss = loss + settings.regularization * torch.stack([undecided(v, beta) for v in roundings]).sum()
        if learned:
            optimizer.param_groups[1]["lr"] = settings.step_rate * half_cosine(progress)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def distance(x: Tensor, target: Tensor, weight: Tensor | None = None, *, axis: int = 1) -> Tensor:
    """Σ over channels of weight (x - target)², the mean over everything else: the loss that λ = 0.01 belongs to.

    Shape: (n, …), with the channels along `axis`.

    >>> distance(torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 4, 4)).item()
    3.0
    """
    square = (x - target).square()
    if weight is not None:
        square = square * weight
    return square.sum(axis).mean()


def channel_axis(model: fx.GraphModule, part: Segment, result: Tensor) -> int:
    """2 for tokens (n, tokens, channels), 1 for all else: three axes are those of an image's row behind a Conv1d."""
    rows = any(model.get_parameter(f"{name}.weight").dim() == 3 for name in part.layers)
    return 2 if result.dim() == 3 and not rows else 1


def _mixed(
    part: Segment,
    exact: ActivationCache,
    rounded: ActivationCache,
    index: Tensor,
    quantized: float,
    generator: torch.Generator,
) -> Values:
    """The inputs of a segment, each element from the quantized network with probability `quantized`."""
    values = rounded.batch(part.inputs, index)
    if quantized >= 1:
        return values
    for node, y in exact.batch(part.inputs, index).items():
        if isinstance(y, Tensor) and y.is_floating_point():
            values[node] = torch.where(torch.rand(y.shape, generator=generator) < quantized, values[node], y)
    return values


def _soften(
    model: fx.GraphModule, part: Segment, settings: Reconstruction, generator: torch.Generator
) -> tuple[dict[Slot, SoftRounding], dict[Slot, LearnedStep]]:
    weights: dict[Slot, SoftRounding] = {}
    for name in part.layers:
        layer = model.get_submodule(name)
        slot = weight_slot(layer)
        assert slot is not None and isinstance(layer.weight, Tensor)
        grid = slot.grid()
        assert isinstance(grid, QParams)
        weights[slot] = SoftRounding(layer.weight, grid)
    inside = {str(n.target) for n in part.nodes if n.op == "call_module"}
    outside = {str(n.target) for n in model.graph.nodes if n not in set(part.nodes)}
    steps: dict[Slot, LearnedStep] = {}
    for name in sorted(inside):
        module = model.get_submodule(name)
        if not isinstance(module, Slot) or not isinstance(module.quantizer, FixedQuantizer):
            continue
        grid = module.quantizer.grid()
        if isinstance(grid.scheme.grid, Uniform):
            learns = settings.step_rate > 0 and name not in outside and isinstance(grid.scheme.scale, FloatScale)
            steps[module] = LearnedStep(grid, learns=learns, quantized=settings.quantized, generator=generator)
    return weights, steps


def _check(model: fx.GraphModule, parts: list[Segment]) -> None:
    """Raise UnsupportedError for what cannot be reconstructed."""
    for name in (layer for part in parts for layer in part.layers):
        layer: nn.Module = model.get_submodule(name)
        slot = weight_slot(layer)
        assert slot is not None
        if not isinstance(slot.quantizer, FixedQuantizer) or not isinstance(slot.quantizer.scheme.grid, Uniform):
            raise UnsupportedError(
                f"{name}: reconstruction learns the rounding of weights with a fixed, even step; its quantizer is "
                f"{type(slot.quantizer).__name__}. Use `fixed`"
            )
