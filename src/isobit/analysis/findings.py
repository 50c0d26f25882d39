"""Findings: what a user should know about a quantized network, in sentences that name the layers and what to do."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, fx

from isobit.analysis.analyze import Measurement
from isobit.analysis.layer_error import sensitivity
from isobit.analysis.layers import Layer
from isobit.analysis.noise import Noise
from isobit.analysis.saturation import saturation
from isobit.core.errors import CalibrationError, UnsupportedError
from isobit.core.granularity import PerChannel, PerTensor, blocks
from isobit.core.grid import Float16, Geometric
from isobit.core.qparams import QParams
from isobit.core.records import JointRangesRecord, SegmentRecord
from isobit.core.risks import REMEDY, pair_text
from isobit.core.scheme import PowerOfTwo
from isobit.graph.insert import preparation
from isobit.targets import TARGETS

LOW_SQNR = 10.0
"""dB below which a tensor is more than a tenth noise."""

WIDE = 100.0
"""Ratio of the channels' weight ranges beyond which one scale for all of them is called a waste."""

DEAD = 1e-6
"""A channel whose largest weight is this much smaller than the layer's computes nothing."""

CLIPPED = 0.01
"""Share of an activation's values beyond its range that is worth a word."""

LOST = 0.01
"""Share of all samples: the loss of accuracy beyond which the layers responsible are named."""

SHOWN = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Channels:
    """The output channels of a weight: ranges are their largest magnitudes.

    `ratio` is the largest range over the smallest of a channel that is not `zero`; `coarse` are the channels, of the
    others, whose every weight rounds to 0, 1 or -1 step under the layer's scale.
    """

    count: int
    zero: tuple[int, ...]
    coarse: tuple[int, ...]
    ratio: float


def channels(layer: Layer) -> Channels | None:
    """The output channels of a layer's weight, None for a layer without a calibrated one."""
    weight, grid = layer.float_weight, None if layer.weight is None else layer.weight.grid()
    if weight is None or not isinstance(grid, QParams) or isinstance(grid.scheme.grid, Float16):
        return None
    axis = PerChannel(1 if layer.kind == "conv_transpose" else 0)
    ranges = blocks(weight.double(), axis).abs().amax(1)
    zero = ranges <= DEAD * float(ranges.max())
    alive = ranges[~zero]
    ratio = float(alive.max() / alive.min()) if alive.numel() else 1.0
    coarse = ~zero & (ranges < 1.5 * float(grid.scale.min()))
    return Channels(count=len(ranges), zero=_indices(zero), coarse=_indices(coarse), ratio=ratio)


def findings(
    model: fx.GraphModule,
    layers: Sequence[Layer],
    measurement: Measurement | None = None,
    *,
    lost: float | None = None,
) -> tuple[str, ...]:
    """All findings, the most important first. `lost` is the share of samples that quantization costs, if known."""
    isolated = {} if measurement is None else measurement.isolated
    found = [*_weights(layers, preparation(model).profile.name, isolated), *_passes(model)]
    if measurement is not None:
        found = [*_noise(layers, measurement, lost), *found, *_activations(layers, measurement)]
    return (*found, *_saturation(model))


# -- noise


def _noise(layers: Sequence[Layer], measurement: Measurement, lost: float | None) -> Iterator[str]:
    """Who is responsible, and how far the noise reaches."""
    output = measurement.output.sqnr_db
    bad = output < LOW_SQNR or (lost is not None and lost > LOST)
    if bad and measurement.isolated:
        reason = f"quantization costs {lost:.1%} of the samples" if lost is not None and lost > LOST else ""
        reason = reason or f"the output's SQNR is {output:.1f} dB"
        named = responsible(layers, measurement.isolated)
        yield (
            f"{reason}. Layers responsible, by their share of the noise when each is quantized alone: {named}. "
            "Keep them in float (keep_float), give them more bits (layer_bits), or see what is said of them below"
        )
    low = {k: v.sqnr_db for k, v in measurement.accumulated.items() if v.sqnr_db < LOW_SQNR}
    if low:
        first, lowest = next(iter(low)), min(low, key=lambda name: low[name])
        more = f", lowest {lowest} ({low[lowest]:.1f} dB)" if lowest != first else ""
        layer = "layer has" if len(low) == 1 else "layers have"
        yield (
            f"{len(low)} of {len(measurement.accumulated)} {layer} an SQNR below {LOW_SQNR:g} dB when everything is "
            f"quantized: first {first} ({low[first]:.1f} dB){more}"
        )


def responsible(layers: Sequence[Layer], isolated: Mapping[str, Noise], *, share: float = 0.95) -> str:
    """The fewest layers that cause `share` of the isolated noise power, at most five, with each one's own share."""
    shares, labels = sensitivity(isolated), {layer.name: layer.label for layer in layers}
    named, covered = [], 0.0
    for name in sorted(shares, key=lambda name: -shares[name])[:SHOWN]:
        if covered >= share:
            break
        named.append(f"{name} ({labels[name]}) {shares[name]:.0%}")
        covered += shares[name]
    return ", ".join(named)


# -- weights and activations


def _weights(layers: Sequence[Layer], target: str, isolated: Mapping[str, Noise]) -> Iterator[str]:
    """Channels that one scale does not fit, the noisiest layer first, and channels that compute nothing."""
    found = {layer: c for layer in layers if (c := channels(layer)) is not None}
    wide = {k: c for k, c in found.items() if c.ratio > WIDE and _has_one_scale(k)}
    if wide:
        shares = sensitivity(isolated)
        worst = sorted(wide, key=lambda layer: (-shares.get(layer.name, 0.0), -wide[layer].ratio))
        texts = [f"{k.name} ({k.label}, {wide[k].ratio:.0f} times{_coarse(wide[k])})" for k in worst]
        others = [n for n, p in TARGETS.items() if isinstance(p.weight.granularity, PerChannel) and n != target]
        others.sort(key=lambda name: TARGETS[name].own_engine is None)  # what can be run here comes first
        yield (
            f"one weight scale for the whole tensor wastes its levels where the ranges of channels differ more than "
            f"{WIDE:g} times: {_listed(texts)}. Equalize the channels, or use a target with a scale per channel "
            f"({_listed(others)})"
        )
    if zero := [f"{k.name} ({len(c.zero)} of {c.count})" for k, c in found.items() if c.zero]:
        yield f"channels whose weights are as good as zero: {_listed(zero)}. They only give their bias: prune them"


def _activations(layers: Sequence[Layer], measurement: Measurement) -> Iterator[str]:
    """Activations that their range clips, and channels that never said anything."""
    seen = measurement.activations.values()
    cut = sorted((d for d in seen if d.clipped > CLIPPED * d.values), key=lambda d: -d.clipped / d.values)
    if cut:
        texts = [f"{d.name} ({d.clipped / d.values:.1%})" for d in cut]
        why = "Calibrate on more samples, or choose another observer"
        if any(isinstance(d.grid.scheme.scale, PowerOfTwo) for d in cut):
            why = "The target's scales are powers of two, and the nearest one can be a smaller one"
        yield f"more than {CLIPPED:.0%} of the values lie outside the range of: {_listed(texts)}. {why}"
    written = [(layer.name, measurement.activations.get(layer.output)) for layer in layers if not layer.moves]
    dead = [f"{name} ({len(d.dead_channels)} of {d.channels})" for name, d in written if d and d.dead_channels]
    if dead:
        yield f"channels of the output that are 0 in every sample of the analysis: {_listed(dead)}"


def _saturation(model: fx.GraphModule) -> Iterator[str]:
    """What the weights alone say about registers, as far as the target's engines have such."""
    try:
        risks = saturation(model)
    except (CalibrationError, UnsupportedError):  # no exported form: no engine computes with these integers
        return
    for risk in risks:
        if risk.kind == "accumulator":
            yield f"on every machine: {risk}. Use avoid_saturation"
    if preparation(model).profile.arithmetic.older_pair_bits is not None and (text := pair_text(risks)):
        yield f"on x86 before VNNI (AVX2, AVX-512) {text}. {REMEDY}"


def _passes(model: fx.GraphModule) -> Iterator[str]:
    """What capture noted, what a pass had to leave alone, and which ops stay in float."""
    if "capture" in model.meta:
        yield from model.meta["capture"].notes
    yield from model.meta.get("notes", ())
    yield from model.meta.get("calibration_data", ())
    segments: tuple[SegmentRecord, ...] = model.meta.get("reconstruction", ())
    if rest := [f"{s.name} ({s.nearest:.2g} to {s.learned:.2g})" for s in segments if not s.learned < s.nearest]:
        yield (
            f"roundings found from data gained nothing in {len(rest)} of {len(segments)} segments, which keep the "
            f"nearest ones (noise over signal of the output): {_listed(rest)}. Give more samples, or more iterations "
            "where they are learned"
        )
    joint: JointRangesRecord | None = model.meta.get("joint_ranges")
    if joint is not None and not joint.after < joint.before:
        yield (
            f"the joint search of ranges gained nothing in {joint.evaluations} evaluations (the loss is "
            f"{joint.before:.3g}): the ranges stay as the observers found them"
        )
    if joint is not None and joint.left:
        yield f"the joint search of ranges left quantizers alone that have no fixed step: {_listed(joint.left)}"
    for name, report in model.meta.get("passes", {}).items():
        if report.left:
            yield f"the pass {name} left {len(report.left)} alone: {_listed(report.left)}"
    reasons: dict[str, list[str]] = {}
    for op in preparation(model).plan.float_ops:
        reasons.setdefault(op.reason, []).append(op.name)
    for reason, ops in reasons.items():
        yield f"{len(ops)} {'op stays' if len(ops) == 1 else 'ops stay'} in float, because {reason}: {_listed(ops)}"


def _has_one_scale(layer: Layer) -> bool:
    """Whether all channels share one scale; those of a geometric grid have levels of their own size all the same."""
    assert layer.weight is not None
    scheme = layer.weight.grid().scheme
    return isinstance(scheme.granularity, PerTensor) and not isinstance(scheme.grid, Geometric)


def _coarse(found: Channels) -> str:
    return f", at most 3 levels in {len(found.coarse)} of {found.count} channels" if found.coarse else ""


def _indices(mask: Tensor) -> tuple[int, ...]:
    return tuple(mask.nonzero().flatten().tolist())


def _listed(texts: Iterable[str]) -> str:
    texts = list(texts)
    return ", ".join(texts[:SHOWN]) + (f" and {len(texts) - SHOWN} more" if len(texts) > SHOWN else "")
