"""Conversion: from a prepared network to a deployed one, whose weights and biases are integers."""

import copy
import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from isobit.core.float16 import cast
from isobit.core.grid import Float16
from isobit.core.qparams import DynamicRange, QParams
from isobit.graph.capped import CappedReLU
from isobit.graph.deployed import (
    CodebookWeight,
    DeployedConv,
    DeployedLinear,
    IntegerWeight,
    bias_step,
    deployed_weight,
    fine_scale,
    is_integer,
)
from isobit.graph.deployed_activations import (
    ActivationQuantizer,
    GeometricQuantizer,
    LevelQuantizer,
    activation_quantizer,
)
from isobit.graph.deployed_float16 import Float16Weight
from isobit.graph.folding import is_folded, weight_and_bias
from isobit.graph.insert import preparation
from isobit.graph.names import names
from isobit.graph.slots import Slot, weight_slot
from isobit.graph.tensors import Tensors, tensors_of

NON_NEGATIVE = frozenset({"relu", "relu6", "capped_relu", "sigmoid", "hardsigmoid", "softmax"})
"""Kinds whose results are never below zero."""

KEEPS_SIGN = frozenset(
    {"max_pool", "avg_pool", "global_avg_pool", "reshape", "transpose", "slice", "getitem", "concat", "pad", "dropout"}
) | {"identity"}
"""Kinds whose results are not below zero where their inputs are not."""


def convert(model: fx.GraphModule) -> fx.GraphModule:
    """A deployed copy in eval mode: int8 weights, int32 biases at s_x · s_w, activations on stored grids.

    The float value that it computes is that of the prepared model, but for the rounding of biases. Raises
    UnsupportedError, with the layer's name, for a grid that has no exported form.
    """
    profile = preparation(model).profile
    deployed = copy.deepcopy(model).eval()
    tensors = tensors_of(deployed)
    positive = _non_negative_slots(deployed, tensors)
    for node in list(deployed.graph.nodes):
        if node.op != "call_module":
            continue
        module = deployed.get_submodule(str(node.target))
        if isinstance(module, Slot):
            quantizer = activation_quantizer(
                module.grid(),
                non_negative=str(node.target) in positive,
                name=module.point,
                signed_bytes=profile.signed_bytes,
            )
            _replace(deployed, node, quantizer)
            if isinstance(quantizer, ActivationQuantizer) and quantizer.in_bytes:
                _take_cap(deployed, node, quantizer)
        elif (slot := weight_slot(module)) is not None:
            scale = input_scale(deployed, tensors, node) if profile.bias_bits else None
            _replace(deployed, node, _deployed_layer(module, slot, scale))
    deployed.delete_all_unused_submodules()
    deployed.graph.lint()
    deployed.recompile()
    deployed.requires_grad_(False)
    return deployed


def integers(deployed: nn.Module) -> dict[str, Tensor]:
    """Every integer tensor and scale of a deployed model, by name: what the certificate's hash covers."""
    kinds = (ActivationQuantizer, LevelQuantizer, GeometricQuantizer, IntegerWeight, CodebookWeight, Float16Weight)
    found: dict[str, Tensor] = {}
    for name, module in deployed.named_modules():
        if isinstance(module, kinds):
            found |= {f"{name}.{key}": value for key, value in module.named_buffers()}
    return found


@dataclass(frozen=True, eq=False)
class Levels:
    """The levels of a weight's integers or indices; those of the file are `offset`, which broadcasts, lower."""

    table: tuple[int, ...]
    offset: Tensor | None = None

    def turned(self) -> "Levels":
        """The levels of the transposed weight."""
        turns = self.offset is not None and self.offset.dim() == 2
        return Levels(self.table, self.offset.T if turns and self.offset is not None else self.offset)


def levels(deployed: nn.Module) -> dict[str, Levels]:
    """The levels of each weight, by the name of the tensor of its integers."""
    found = {f"{n}.q": Levels(m.levels, m.offset) for n, m in deployed.named_modules() if isinstance(m, IntegerWeight)}
    return found | {f"{n}.q": Levels(m.levels) for n, m in deployed.named_modules() if isinstance(m, CodebookWeight)}


def hash_integers(deployed: nn.Module) -> str:
    """SHA-256 over names, types, shapes and bytes of `integers`."""
    digest = hashlib.sha256()
    for name, value in sorted(integers(deployed).items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def clamped_biases(deployed: fx.GraphModule) -> tuple[str, ...]:
    """A note for each layer with a bias that 32 bits of s_x · s_w do not hold, so that the file has another value."""
    found = []
    for node, name in names(deployed.graph).items():
        layer = deployed.get_submodule(str(node.target)) if node.op == "call_module" else None
        if not isinstance(layer, (DeployedConv, DeployedLinear)) or not isinstance(layer.integer, IntegerWeight):
            continue
        if channels := layer.integer.clamped:
            shown = ", ".join(map(str, channels[:4])) + (", …" if len(channels) > 4 else "")
            found.append(
                f"{name}: 32 bits of s_x · s_w do not hold the bias of {len(channels)} channels ({shown}), which was "
                "clamped. Quantize with the quantizer `fixed`, which takes larger steps there"
            )
    return tuple(found)


def round_biases(model: fx.GraphModule) -> None:
    """Move the biases of a prepared model to the grid of the accumulator, so that it computes what is deployed."""
    profile = preparation(model).profile
    if not profile.bias_bits and profile.ranges != "cast":
        return
    tensors = tensors_of(model)
    calls = [n for n in model.graph.nodes if n.op == "call_module"]
    targets = [str(n.target) for n in calls]
    for node in calls:
        layer = model.get_submodule(str(node.target))
        slot = weight_slot(layer)
        if slot is None or layer.bias is None or is_folded(layer) or targets.count(str(node.target)) > 1:
            continue  # a layer that is called twice may read two scales: its deployed copies round for themselves
        with torch.no_grad():
            slot.quantizer(layer.weight)  # some quantizers take their scale from the weight that passes
        bias, weight, scale = layer.bias, slot.grid(), input_scale(model, tensors, node)
        assert isinstance(bias, Tensor)
        if isinstance(weight, QParams) and isinstance(weight.scheme.grid, Float16):
            with torch.no_grad():
                bias.copy_(cast(bias, weight.scheme.grid))
            continue
        if isinstance(weight, QParams) and not is_integer(weight):
            step = fine_scale(bias).double()
        elif scale is not None and isinstance(weight, QParams) and weight.scale.dim() <= 1:
            step = bias_step(bias, scale.float() * weight.scale.float(), bits=weight.scheme.bits).double()
        else:
            continue
        with torch.no_grad():
            bias.copy_((bias.double() / step).round() * step)


def input_scale(model: nn.Module, tensors: Tensors, node: fx.Node) -> Tensor | None:
    """The scale of the slot that feeds a layer, seen through a pad that it absorbs; None for a float input."""
    inputs = tensors.inputs(node)
    if not inputs:
        return None
    source = tensors.source(inputs[0])
    if source.op != "call_module":
        return None
    module = model.get_submodule(str(source.target))
    if isinstance(module, (ActivationQuantizer, LevelQuantizer)):
        return module.scale
    if isinstance(module, Slot):
        grid = module.grid()
        return None if isinstance(grid, DynamicRange) else grid.scale.detach()
    return None


def _take_cap(model: fx.GraphModule, node: fx.Node, quantizer: ActivationQuantizer) -> None:
    """Let a quantizer cap the integers, where a ReLU with caps is in front of it alone: that one becomes a ReLU."""
    (source,) = node.all_input_nodes
    module = model.get_submodule(str(source.target)) if source.op == "call_module" else None
    if not isinstance(module, CappedReLU) or len(source.users) > 1:
        return
    quantizer.cap(module.cap, source.meta["val"].dim())
    _replace(model, source, nn.ReLU())


def _non_negative_slots(model: nn.Module, tensors: Tensors) -> set[str]:
    """The slots whose every tensor is never below zero by construction."""
    positive: set[fx.Node] = set()
    slots: dict[str, bool] = {}
    for node in tensors.graph.nodes:
        is_slot = node.op == "call_module" and isinstance(model.get_submodule(str(node.target)), Slot)
        follows = (is_slot or tensors.kinds[node] in KEEPS_SIGN) and all(t in positive for t in tensors.inputs(node))
        if tensors.kinds[node] in NON_NEGATIVE or (follows and tensors.inputs(node)):
            positive.add(node)
        if is_slot:
            slots[str(node.target)] = slots.get(str(node.target), True) and node in positive
    return {name for name, is_positive in slots.items() if is_positive}


def _deployed_layer(layer: nn.Module, slot: Slot, input_scale: Tensor | None) -> nn.Module:
    weight, bias = weight_and_bias(layer)
    with torch.no_grad():
        weight = slot.quantizer(weight)  # first: some quantizers take their scale from the weight that passes
        grid = slot.grid()
        assert isinstance(grid, QParams)
        channels = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
        assert isinstance(channels, int)
        integer = deployed_weight(weight, grid, bias, input_scale, channels=channels, name=slot.point)
    if isinstance(layer, nn.Linear):
        return DeployedLinear(integer)
    assert isinstance(layer, nn.modules.conv._ConvNd)
    return DeployedConv(layer, integer)


def _replace(model: fx.GraphModule, node: fx.Node, module: nn.Module) -> None:
    """Let this one call use `module`. It gets a name of its own, since a shared layer may read several scales."""
    name = f"deployed_{node.name}"
    model.add_module(name, module)
    node.target = name
