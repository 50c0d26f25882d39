"""Rescaling: by which ratios of scales a calibrated network takes integers from one grid to the next."""

from dataclasses import dataclass
from math import prod
from typing import final

import numpy as np
import torch
from torch import Tensor, fx, nn

from isobit.core.granularity import PerGroup
from isobit.core.grid import Uniform
from isobit.core.qparams import QParams
from isobit.graph.names import names
from isobit.graph.slots import Slot, weight_slot
from isobit.graph.tensors import Tensors, tensors_of
from isobit.targets.profile import ACTIVATIONS, CONV_AND_LINEAR, MOVES


@final
@dataclass(frozen=True, slots=True)
class Operand:
    """What an op adds up: the integers of `slots`, multiplied with each other and with the weight of `layer`, over
    `count`. Slots and layers are names of modules."""

    slots: tuple[str, ...]
    layer: str = ""
    count: int = 1


@final
@dataclass(frozen=True, slots=True)
class Rescaled:
    """An op whose exact result, Σ r · q over its operands with r = s · s_w / (n · s_y), is rounded to `output`.

    `capped` says that the op ends in a clamp from above. `name` is that of the op in the network.
    """

    name: str
    kind: str
    operands: tuple[Operand, ...]
    output: str
    capped: bool = False


@final
@dataclass(frozen=True, slots=True)
class Rescaling:
    """All ops that round to a grid, in network order: rescaled integers, inputs, and what is computed in float.

    An input is its slot and which of the network's inputs that reads.
    """

    ops: tuple[Rescaled, ...]
    inputs: tuple[tuple[str, int], ...]
    in_float: tuple[str, ...]


def rescaling(model: fx.GraphModule) -> Rescaling:
    """Look at a calibrated model."""
    tensors, called = tensors_of(model), names(model.graph)
    given = [node for node in model.graph.nodes if node.op == "placeholder"]
    ops: list[Rescaled] = []
    inputs: list[tuple[str, int]] = []
    in_float: list[str] = []
    for node in model.graph.nodes:
        if not is_slot(model, node):
            continue
        source, capped = _producer(tensors, tensors.inputs(node)[0])
        kind, output = tensors.kinds[source], str(node.target)
        if kind == "input":
            inputs.append((output, given.index(source)))
        elif kind in MOVES | {"quantize", "getitem"} and _keeps(model, tensors, source, output):
            continue
        elif (operands := _operands(model, tensors, source)) is None:
            in_float.append(called[source])
        else:
            ops.append(Rescaled(called[source], kind, operands, output, capped))
    return Rescaling(tuple(ops), tuple(dict.fromkeys(inputs)), tuple(dict.fromkeys(in_float)))


def is_slot(model: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node quantizes an activation."""
    return node.op == "call_module" and isinstance(model.get_submodule(str(node.target)), Slot)


def scale_of(model: fx.GraphModule, slot: str) -> float:
    """The scale of an activation quantizer, by the name of its slot."""
    found = model.get_submodule(slot)
    assert isinstance(found, Slot)
    grid = found.grid()
    assert isinstance(grid, QParams)
    return float(grid.scale)


def weight_scales(model: fx.GraphModule, layer: str) -> np.ndarray:
    """The scales of a layer's weight: one, or one for each output."""
    slot = weight_slot(model.get_submodule(layer))
    assert slot is not None
    grid = slot.grid()
    assert isinstance(grid, QParams)
    scales: np.ndarray = grid.scale.detach().double().numpy().reshape(-1)
    return scales


def ratios(model: fx.GraphModule, op: Rescaled) -> np.ndarray:
    """r of each operand, (channels or 1, operands), float64."""
    y = scale_of(model, op.output)
    found = []
    for operand in op.operands:
        scale = prod(scale_of(model, slot) for slot in operand.slots) / operand.count
        found.append(scale / y * (weight_scales(model, operand.layer) if operand.layer else np.ones(1)))
    rows = max(len(r) for r in found)
    return np.stack([np.broadcast_to(r, rows) for r in found], axis=1)


def _producer(tensors: Tensors, tensor: fx.Node) -> tuple[fx.Node, bool]:
    """The op behind fused activations, and whether one of these clamps from above."""
    capped, source = False, tensors.source(tensor)
    while tensors.kinds[source] in ACTIVATIONS:
        capped = capped or tensors.kinds[source] != "relu"
        source = tensors.source(tensors.inputs(source)[0])
    return source, capped


def _keeps(model: fx.GraphModule, tensors: Tensors, node: fx.Node, output: str) -> bool:
    """Whether all that a node moves is on the grid of the slot `output` already."""
    if is_slot(model, node):
        return str(node.target) == output
    sources = [tensors.source(t) for t in tensors.inputs(node)]
    return bool(sources) and all(_keeps(model, tensors, s, output) for s in sources if s.op != "get_attr")


def _operands(model: fx.GraphModule, tensors: Tensors, node: fx.Node) -> tuple[Operand, ...] | None:
    """The integers that an op computes with; None where it computes with floats."""
    sources = [tensors.source(t) for t in tensors.inputs(node)]
    match tensors.kinds[node]:
        case kind if kind in CONV_AND_LINEAR:
            found = _layer(model, tensors, node)
            return None if found is None else (found,)
        case "add":
            each = [_addend(model, tensors, source) for source in sources]
            if (
                len(each) == 1
                and len(node.all_input_nodes) == 1
                and len(node.args) == 2
                and node.args[0] is node.args[1]
            ):
                each = each * 2
            return tuple(o for o in each if o) if len(each) == 2 and all(each) else None
        case "mul" | "matmul":
            if len(sources) == 2 and all(is_slot(model, s) for s in sources):
                return (Operand(tuple(str(s.target) for s in sources)),)
        case "global_avg_pool" | "avg_pool":
            count = _averaged(model, tensors, node)
            if count and is_slot(model, sources[0]):
                return (Operand((str(sources[0].target),), count=count),)
        case kind if kind in MOVES | {"quantize"}:
            if is_slot(model, node):
                return (Operand((str(node.target),)),)
            if len(sources) == 1 and is_slot(model, sources[0]):
                return (Operand((str(sources[0].target),)),)
    return None


def _addend(model: fx.GraphModule, tensors: Tensors, source: fx.Node) -> Operand | None:
    if is_slot(model, source):
        return Operand((str(source.target),))
    return _layer(model, tensors, source) if tensors.kinds[source] in CONV_AND_LINEAR else None


def _layer(model: fx.GraphModule, tensors: Tensors, node: fx.Node) -> Operand | None:
    """A layer whose weight and input are on even grids."""
    if node.op != "call_module":
        return None
    slot, source = weight_slot(model.get_submodule(str(node.target))), tensors.source(tensors.inputs(node)[0])
    if slot is None or not is_slot(model, source):
        return None
    grid = slot.grid()
    if not isinstance(grid, QParams) or isinstance(grid.scheme.granularity, PerGroup):
        return None
    return Operand((str(source.target),), str(node.target)) if isinstance(grid.scheme.grid, Uniform) else None


def _averaged(model: fx.GraphModule, tensors: Tensors, node: fx.Node) -> int:
    """How many values a mean is over; 0 where that depends on the place."""
    before = tensors.inputs(node)[0].meta.get("val")
    if tensors.kinds[node] == "global_avg_pool":
        return int(prod(before.shape[2:])) if isinstance(before, Tensor) else 0
    module = model.get_submodule(str(node.target)) if node.op == "call_module" else None
    if not isinstance(module, (nn.AvgPool1d, nn.AvgPool2d)):
        return 0
    sizes = torch.tensor(module.kernel_size).reshape(-1)
    dims = 1 if isinstance(module, nn.AvgPool1d) else 2
    padded = bool(torch.tensor(module.padding).any()) or module.ceil_mode
    return 0 if padded else int(sizes.prod()) ** (dims if len(sizes) == 1 and dims == 2 else 1)
