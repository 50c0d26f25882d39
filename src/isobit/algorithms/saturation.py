"""Saturation avoided: channels whose integers can leave a register get a larger step, and the others stay as they are.

On x86 before VNNI two products share 16 bits (`isobit.integer.pairs`), and everywhere all of a channel's share 32.
"""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, fx

from isobit.algorithms.reconstruction_progress import replace_weight, weight_slot_of
from isobit.analysis.saturation import ACCUMULATOR_BITS, PAIR_BITS, IntegerLayer, integer_layers, saturation
from isobit.core.errors import UnsupportedError
from isobit.core.granularity import expand
from isobit.core.grid import Uniform
from isobit.core.qparams import QParams
from isobit.core.risks import SaturationRecord
from isobit.core.scheme import PowerOfTwo
from isobit.graph.convert import input_scale
from isobit.graph.deployed import LARGEST_BIAS
from isobit.graph.folding import weight_and_bias
from isobit.graph.insert import preparation
from isobit.graph.slots import Slot, weight_slot
from isobit.graph.tensors import tensors_of
from isobit.integer.pairs import PairedProducts
from isobit.quantizers.fixed import FixedQuantizer

TRIED = 9
"""Steps between that of before and one at which nothing saturates."""

ROOM = 1.001
"""For the rounding of weights and bias, in a sum of 32 bits."""


@torch.no_grad()
def widen_steps(model: fx.GraphModule, *, pairs: bool = True) -> dict[str, SaturationRecord]:
    """Give channels that can saturate larger steps, in place, before their weights are rounded; what was changed.

    Without `pairs`, only those whose sum can leave 32 bits, as ONNX Runtime's quantizer does for biases
    (https://github.com/microsoft/onnxruntime/pull/22020): such a bias would be clamped, whatever the machine.
    For a pair, the step is the one of several at which the nearest weights without saturation are closest to the float
    weights; where a layer has one step, or steps that are powers of two, it is one of those. For an accumulator, which
    a large bias over a small step fills, it is as large as needed.
    """
    changed: dict[str, SaturationRecord] = {}
    for layer in integer_layers(model) if pairs or _may_fill(model) else ():
        slot = weight_slot_of(model, layer.name)
        if not isinstance(slot.quantizer, FixedQuantizer) or not isinstance(slot.quantizer.scheme.grid, Uniform):
            continue  # its steps are its own: `settle` clamps
        grid = slot.quantizer.grid()
        if grid.scheme.bits < 8 and bool((grid.zero_point != 0).any()):
            continue  # a file holds it without zero point
        weight = model.get_parameter(f"{layer.name}.weight").detach()
        factor = _factor(weight, grid, layer) if pairs else _least(grid, layer)
        by_output = np.broadcast_to(factor, len(layer.raw.weight))
        channels, filled = np.flatnonzero(by_output > 1), _room(layer) > 1
        if not channels.size:
            continue
        _scale(slot, grid, factor)
        before = changed.get(layer.name)
        changed[layer.name] = SaturationRecord(
            layer=layer.name,
            channels=tuple(int(c) for c in channels),
            outputs=len(layer.raw.weight),
            factor=float(by_output[~filled].max(initial=1.0)) * (1.0 if before is None else before.factor),
            clamped=0,
            filled=int(filled.sum()),
        )
    return changed


@torch.no_grad()
def settle(model: fx.GraphModule, changed: dict[str, SaturationRecord]) -> tuple[SaturationRecord, ...]:
    """Clamp what saturates in the rounded weights, in place: two weights of a pair share what is too much."""
    changed, layers = dict(changed), integer_layers(model)
    for layer in {layer.name: layer for layer in layers if layer.signed_weight}.values():
        q = layer.raw.weight
        for call in layers:
            if call.name == layer.name:
                q = PairedProducts(q, call.raw.low, call.raw.high).within(PAIR_BITS)
        moved = q - layer.raw.weight
        if not moved.any():
            continue
        slot, weight = weight_slot_of(model, layer.name), model.get_parameter(f"{layer.name}.weight")
        on_grid, grid = slot.quantizer(weight.detach()), slot.grid()
        assert isinstance(grid, QParams)
        scale = expand(grid.scale, weight.dim(), grid.scheme.granularity)
        replace_weight(model, layer.name, on_grid + torch.from_numpy(moved).to(weight.dtype) * scale)
        held = changed.get(layer.name) or SaturationRecord(
            layer=layer.name, channels=(), outputs=len(q), factor=1.0, clamped=0
        )
        channels = {*held.channels, *(int(c) for c in np.flatnonzero(moved.reshape(len(q), -1).any(1)))}
        clamped = int(np.count_nonzero(moved))
        changed[layer.name] = replace(held, channels=tuple(sorted(channels)), clamped=clamped)
    found = tuple(changed.values())
    model.meta["notes"] = (*model.meta.get("notes", ()), _note(found))
    return found


def note_filled(model: fx.GraphModule, changed: dict[str, SaturationRecord]) -> None:
    """Say which layers got larger steps without having been asked to."""
    for found in changed.values():
        said = (
            f"{found.layer}: {found.filled} of {found.outputs} channels got larger steps, since their sums with "
            "the bias do not fit in 32 bits of the old ones"
        )
        model.meta["notes"] = (*model.meta.get("notes", ()), said)


def _note(found: tuple[SaturationRecord, ...]) -> str:
    """What was changed, in a sentence."""
    if not found:
        return "avoid_saturation: no channel can saturate, none was changed"
    channels, outputs = sum(len(f.channels) for f in found), sum(f.outputs for f in found)
    largest = ", ".join(
        f"{f.layer} ({len(f.channels)} of {f.outputs}, steps up to {f.factor:.2f} times as large)" for f in found[:3]
    )
    filled = sum(f.filled for f in found)
    return (
        f"avoid_saturation changed {channels:,} of {outputs:,} channels of {len(found)} layers and moved "
        f"{sum(f.clamped for f in found):,} weights to another level: {largest}{', …' if len(found) > 3 else ''}"
        f"{f'. Of these {filled:,} have a bias that 32 bits of their steps did not hold' if filled else ''}"
    )


def check_settled(model: fx.GraphModule) -> None:
    """Raise UnsupportedError, with the layer, for a network in which something can still saturate."""
    if left := saturation(model):
        raise UnsupportedError(
            f"{left[0]}: its quantizer does not keep a weight that was moved, so saturation cannot be avoided there. "
            "Use `fixed`, or leave avoid_saturation out"
        )


def _factor(weight: Tensor, grid: QParams, layer: IntegerLayer) -> np.ndarray:
    """What to multiply the steps with, of the shape of the scale; 1 where nothing has to change."""
    powers, limit = isinstance(grid.scheme.scale, PowerOfTwo), (1 << (PAIR_BITS - 1)) - 1
    least, pairs = _least(grid, layer), layer.pairs()
    most = _of_scale(np.where(pairs > limit, pairs / limit * 1.02, 1.0), grid, powers=powers)
    factors = np.stack([1 + (most - 1) * t for t in ((0.0, 1.0) if powers else np.linspace(0, 1, TRIED))])
    if not (pairs > limit).any():
        return least
    losses = np.stack([_loss(weight, scaled(grid, factor), layer) for factor in factors])
    by_output = losses.argmin(0), np.arange(len(pairs))
    found: np.ndarray = np.maximum(least, factors[by_output if grid.scale.dim() else losses.sum(1).argmin()])
    return found


def _least(grid: QParams, layer: IntegerLayer) -> np.ndarray:
    """The least factors with which no sum leaves 32 bits."""
    return _of_scale(np.maximum(_room(layer), 1.0), grid, powers=isinstance(grid.scheme.scale, PowerOfTwo))


def _may_fill(model: fx.GraphModule) -> bool:
    """Whether a sum could need more than 32 bits: a quick look at biases and numbers of weights, before a proof."""
    tensors = tensors_of(model)
    for node in model.graph.nodes:
        module = model.get_submodule(str(node.target)) if node.op == "call_module" else None
        slot = weight_slot(module) if module is not None else None
        scale = input_scale(model, tensors, node) if slot is not None else None
        grid = slot.grid() if slot is not None else None
        if module is None or scale is None or not isinstance(grid, QParams) or grid.scheme.bits > 8:
            continue
        weight, bias = weight_and_bias(module)
        largest = weight[0].numel() * 2.0**15
        if bias is not None and preparation(model).profile.bias_bits:
            steps = scale.double() * (grid.scale if grid.scale.dim() <= 1 else grid.scale.min()).double()
            largest += float((bias.detach().abs() / steps).max())
        if largest * ROOM > LARGEST_BIAS:
            return True
    return False


def _room(layer: IntegerLayer) -> np.ndarray:
    """How many accumulators of 32 bits each output's sum would fill, the rounding of weights and bias included."""
    found: np.ndarray = layer.sums() * ROOM / ((1 << (ACCUMULATOR_BITS - 1)) - 1)
    return found


def _of_scale(factor: np.ndarray, grid: QParams, *, powers: bool) -> np.ndarray:
    """Factors of outputs as those of scales."""
    if not grid.scale.dim():
        factor = np.asarray(factor.max())
    return np.exp2(np.ceil(np.log2(factor))) if powers else factor


def _loss(weight: Tensor, grid: QParams, layer: IntegerLayer) -> np.ndarray:
    """The squared error of each output's weights, rounded to nearest and clamped."""
    q = PairedProducts(grid.quantize(weight).numpy().astype(np.int64), layer.raw.low, layer.raw.high)
    settled = grid.dequantize(torch.from_numpy(q.within(PAIR_BITS)))
    error: np.ndarray = (settled.double() - weight.double()).square().flatten(1).sum(1).numpy()
    return error


def scaled(grid: QParams, factor: np.ndarray) -> QParams:
    """The grid with larger steps, and a zero point as much nearer to 0."""
    by = torch.from_numpy(np.asarray(factor)).reshape(grid.scale.shape)
    zero_point = (grid.zero_point.double() / by).round().to(grid.zero_point.dtype)
    return QParams((grid.scale.double() * by).to(grid.scale.dtype), zero_point, grid.scheme)


def _scale(slot: Slot, grid: QParams, factor: np.ndarray) -> None:
    slot.quantizer.calibrate(scaled(grid, factor))  # type: ignore[operator]
