"""Calibration: show data to the observers of a prepared network, then let every quantizer take what they found."""

from collections.abc import Iterator, Mapping, Sized
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from isobit.core.batches import Batch, Data, batches
from isobit.core.errors import CalibrationError
from isobit.core.granularity import PerChannel
from isobit.core.progress import Progress, silent
from isobit.core.records import RangeChoice
from isobit.graph.convert import round_biases
from isobit.graph.folding import merge_for_good, weight_and_bias
from isobit.graph.insert import preparation, slots
from isobit.graph.passes import MergeBatchNormIntoScales
from isobit.graph.slots import Slot, weight_slot
from isobit.graph.tensors import Tensors, tensors_of
from isobit.observers import MinMax, ObserverSettings

OVERWRITING = (nn.ReLU, nn.Hardtanh, nn.SiLU, nn.Hardswish, nn.LeakyReLU)
"""Modules (ReLU6 is a Hardtanh) with an option `inplace`."""

FRESH = frozenset({"conv", "conv_transpose", "linear", "batch_norm", "add"})
"""Kinds whose result is memory of its own."""


@dataclass(frozen=True, kw_only=True)
class Observation:
    """Which observers find the ranges. `by_name` overrides them for single quantizers, by the slot's name."""

    weight: ObserverSettings = field(default_factory=MinMax)
    activation: ObserverSettings = field(default_factory=MinMax)
    by_name: Mapping[str, ObserverSettings] = field(default_factory=dict)

    def settings_of(self, slot: Slot, *, is_weight: bool) -> ObserverSettings:
        """The observer of one slot."""
        return self.by_name.get(slot.point, self.weight if is_weight else self.activation)


@torch.inference_mode()
def calibrate(model: fx.GraphModule, data: Data, observation: Observation, *, progress: Progress = silent) -> int:
    """Calibrate all quantizers in place and return the number of samples seen.

    Weights are observed once, activations over all of `data` with the network still in float. Raises
    CalibrationError for data that is empty, of a wrong shape, not finite or constant, and names the layer where
    an observer saw nothing. What observers chose themselves (`auto`) is in `model.meta["ranges"]`, as `RangeChoice`s.
    """
    model.eval()
    weights = _observe_weights(model, observation)
    activations = [s for s in slots(model) if s not in weights]
    for slot in activations:
        slot.observer = observation.settings_of(slot, is_weight=False).build(slot.quantizer.scheme)  # type: ignore[arg-type]
        slot.mode = "observe"
    with fastest_layout(model) as layout, in_place(model):
        samples = _run(model, data, layout, progress)
    model.meta["ranges"] = tuple(c for slot in (*activations, *weights) if (c := _calibrate(slot)) is not None)
    for slot, weight in weights.items():
        if callable(start := getattr(slot.quantizer, "start", None)):
            with torch.inference_mode(False), torch.no_grad():  # what it creates will be trained
                start(weight.clone())
    _clone_out_of_inference_mode(model)
    return samples


def finish(model: fx.GraphModule) -> None:
    """The end of calibration or training: batch norms merged for good, biases on the grid of the accumulator.

    Folded batch norms go into weights that are then quantized, as they were in training; one that was kept goes into
    the scales of its weight's channels, where the target has such. What the model then computes is what is deployed; do
    it before the model is measured.
    """
    merge_for_good(model)
    profile = preparation(model).profile
    if isinstance(profile.weight.granularity, PerChannel) or not profile.fold_bn:  # without folding: no hardware at all
        found = dict(model.meta.get("passes", {}))
        model.meta["passes"] = found | {"merge_bn_into_scales": MergeBatchNormIntoScales().apply(model)}
    round_biases(model)


def _calibrate(slot: Slot) -> RangeChoice | None:
    """Give the quantizer its range; what the observer has to say about it, if it is one that chooses."""
    observer = slot.observer
    slot.calibrate()
    reason = choice() if callable(choice := getattr(observer, "choice", None)) else ""
    return RangeChoice(tensor=slot.point, reason=reason) if reason else None


def _observe_weights(model: fx.GraphModule, observation: Observation) -> dict[Slot, Tensor]:
    """Show each weight to the observer of its slot; the weights by slot."""
    found: dict[Slot, Tensor] = {}
    for layer in model.modules():
        slot = weight_slot(layer)
        if slot is None or slot in found:
            continue
        slot.observer = observation.settings_of(slot, is_weight=True).build(slot.quantizer.scheme)  # type: ignore[arg-type]
        slot.mode = "observe"
        found[slot] = weight_and_bias(layer)[0]
        slot(found[slot])
        slot.mode = "float"
    return found


@contextmanager
def fastest_layout(model: fx.GraphModule) -> Iterator[torch.memory_format]:
    """Keep the weights of convolutions in channels-last order meanwhile, which CPU kernels run about a sixth faster.

    Not where the graph takes a map apart with `view`, which needs the usual order.
    """
    tensors = tensors_of(model)
    splits_maps = any(
        tensors.kinds[node] == "reshape" and any(_is_map(t.meta.get("val")) for t in tensors.inputs(node))
        for node in model.graph.nodes
    )
    layers = [] if splits_maps else [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    before = [layer.weight.data for layer in layers]
    for layer in layers:
        layer.weight.data = layer.weight.data.contiguous(memory_format=torch.channels_last)
    try:
        yield torch.channels_last if layers else torch.contiguous_format
    finally:
        for layer, weight in zip(layers, before, strict=True):
            layer.weight.data = weight


@contextmanager
def in_place(model: fx.GraphModule) -> Iterator[None]:
    """Let activation functions overwrite their input meanwhile, where a layer made it for nobody else.

    Saves the memory traffic of a second tensor; only right where no gradient is wanted.
    """
    tensors = tensors_of(model)
    calls: dict[Any, list[fx.Node]] = {}
    for node in model.graph.nodes:
        if node.op == "call_module" and isinstance(module := model.get_submodule(str(node.target)), OVERWRITING):
            calls.setdefault(module, []).append(node)
    changed = [
        module
        for module, nodes in calls.items()
        if not module.inplace and all(_alone_with_its_input(tensors, node) for node in nodes)
    ]
    for module in changed:
        module.inplace = True
    try:
        yield
    finally:
        for module in changed:
            module.inplace = False


def _alone_with_its_input(tensors: Tensors, node: fx.Node) -> bool:
    (source,) = node.all_input_nodes
    overwrites = getattr(source.target, "__name__", "").startswith(("iadd", "add_"))
    return len(source.users) == 1 and tensors.kinds[source] in FRESH and not overwrites


def _is_map(value: object) -> bool:
    return isinstance(value, Tensor) and value.dim() == 4 and tuple(value.shape[2:]) != (1, 1)


def _run(model: nn.Module, data: Data, layout: torch.memory_format, progress: Progress) -> int:
    total = len(data) if isinstance(data, Sized) else None
    samples = 0
    first: Batch | None = None
    varies = False
    for index, batch in enumerate(batches(data)):
        first = first or batch
        varies = varies or _varies(batch, first)
        try:
            model(*(x.contiguous(memory_format=layout) if x.dim() == 4 else x for x in batch.inputs))
        except (RuntimeError, TypeError) as error:
            shapes = ", ".join(str(tuple(x.shape)) for x in batch.inputs)
            raise CalibrationError(
                f"the network does not take calibration batch {index} of shape {shapes}: {_first_line(error)}"
            ) from error
        samples += batch.size
        progress("calibrating", index + 1, total)
    if not varies and first is not None:
        raise CalibrationError("the calibration data is constant: every value is the same. Give real samples")
    return samples


def _varies(batch: Batch, first: Batch) -> bool:
    """Whether any float input of the batch holds a value other than the first one seen."""
    pairs = zip(batch.inputs, first.inputs, strict=True)
    floats = [(x, y) for x, y in pairs if x.is_floating_point()]
    return not floats or any(bool((x != y.flatten()[0]).any()) for x, y in floats)


def _clone_out_of_inference_mode(model: nn.Module) -> None:
    """Tensors made in inference mode cannot be trained on; QAT starts from calibrated quantizers."""
    with torch.inference_mode(False):
        for slot in slots(model):
            for module in slot.modules():
                for name, buffer in module.named_buffers(recurse=False):
                    if buffer.is_inference():
                        module._buffers[name] = buffer.clone()
                for parameter in module.parameters(recurse=False):
                    if parameter.data.is_inference():
                        parameter.data = parameter.data.clone()


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
