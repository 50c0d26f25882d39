"""Saturation: which channels of a quantized network can leave their registers, before there is a file."""

from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor, fx

from isobit.core.risks import OverflowRisk
from isobit.graph.convert import convert
from isobit.graph.deployed import DeployedConv, DeployedLinear, IntegerWeight
from isobit.graph.deployed_activations import ActivationQuantizer, DynamicActivationQuantizer, LevelQuantizer
from isobit.graph.tensors import tensors_of
from isobit.integer.bounds import accumulator, accumulator_risk, pair_risk
from isobit.integer.pairs import OFFSET, PairedProducts

PAIR_BITS, ACCUMULATOR_BITS = 16, 32
"""The registers of x86 before VNNI; others have the second alone."""


@final
@dataclass(frozen=True, eq=False, slots=True)
class IntegerLayer:
    """One call of a layer that an engine computes with integers, as a file will hold them.

    `raw` are the bytes that are multiplied, `centred` the same less their zero points. `bias` is that of the float
    network over the accumulator's step, (outputs,) or (1,), before it is rounded and bounded.
    """

    name: str
    raw: PairedProducts
    centred: PairedProducts
    bias: np.ndarray
    signed_weight: bool

    def sums(self) -> np.ndarray:
        """The largest accumulator of each output, float64."""
        return accumulator(self.centred, self.bias)

    def pairs(self) -> np.ndarray:
        """How far the pair sums of each output go; nowhere where they have registers of their own."""
        return self.raw.worst() if self.signed_weight else np.zeros(len(self.raw.weight), np.int64)

    def risks(self) -> list[OverflowRisk]:
        """Of both registers."""
        sums = self.sums().round().clip(max=1 << 62).astype(np.int64)
        found = accumulator_risk(self.name, sums, ACCUMULATOR_BITS)
        return found + (pair_risk(self.name, self.raw, PAIR_BITS) if self.signed_weight else [])


def saturation(model: fx.GraphModule) -> tuple[OverflowRisk, ...]:
    """What can happen to a calibrated network on x86 before VNNI (`isobit.integer.overflow_risks`), in network order.

    Raises UnsupportedError for a network that has no exported form.
    """
    return tuple(risk for layer in integer_layers(model) for risk in layer.risks())


def integer_layers(model: fx.GraphModule) -> list[IntegerLayer]:
    """The calls of convolutions and linear layers that multiply integers, in network order."""
    with torch.no_grad():
        deployed = convert(model)
    targets = {node.name: str(node.target) for node in deployed.graph.nodes if node.op == "call_module"}
    tensors, found = tensors_of(model), []
    for node in model.graph.nodes:
        layer = deployed.get_submodule(targets[node.name]) if node.op == "call_module" else None
        if not isinstance(layer, (DeployedConv, DeployedLinear)) or not isinstance(layer.integer, IntegerWeight):
            continue
        if layer.integer.q.dtype.itemsize > 1:  # no register of 32 bits sums integers of 16
            continue
        source = tensors.source(tensors.inputs(node)[0]).name
        levels = _levels(deployed.get_submodule(targets[source])) if source in targets else None
        transposed = isinstance(layer, DeployedConv) and layer.transposed
        if levels is not None and not transposed and not layer.integer.block:
            bias = model.get_submodule(str(node.target)).bias
            assert bias is None or isinstance(bias, Tensor)
            found.append(_integer_layer(str(node.target), layer, levels, bias))
    return found


_Levels = tuple[np.ndarray | int, np.ndarray | int, int]
"""The lowest and highest level, of each channel where it has its own, and the zero point, as unsigned bytes."""


def _integer_layer(
    name: str, layer: DeployedConv | DeployedLinear, levels: _Levels, bias: Tensor | None
) -> IntegerLayer:
    weight = layer.integer
    assert isinstance(weight, IntegerWeight)
    raw = weight.q.numpy().astype(np.int64)
    groups = layer.groups if isinstance(layer, DeployedConv) else 1
    low, high = (np.broadcast_to(v, groups * raw.shape[1]).reshape(groups, -1).astype(np.int64) for v in levels[:2])
    zero_point = weight.zero_point.numpy().astype(np.int64)
    if zero_point.ndim:
        zero_point = zero_point.reshape([-1 if i == weight.axis else 1 for i in range(raw.ndim)])
    in_steps = np.zeros(1)
    if bias is not None and "bias_scale" in weight._buffers:
        in_steps = (bias.detach().double() / weight.bias_scale.double()).numpy()
    return IntegerLayer(
        name=name,
        raw=PairedProducts(raw, low, high),
        centred=PairedProducts(raw - zero_point, low - levels[2], high - levels[2]),
        bias=in_steps,
        signed_weight=weight.q.dtype == torch.int8,
    )


def _levels(quantizer: object) -> _Levels | None:
    """Those of a quantizer; None for another module."""
    match quantizer:
        case ActivationQuantizer() if quantizer.in_bytes:
            offset = OFFSET if quantizer.zero_point.dtype == torch.int8 else 0
            zero = int(quantizer.zero_point)
            high: np.ndarray | int = quantizer.high
            if "caps" in quantizer._buffers:
                high = np.maximum(quantizer.caps.numpy().astype(np.int64).reshape(-1), zero)
            return min(quantizer.low, zero) + offset, high + offset, zero + offset
        case LevelQuantizer():
            return int(quantizer.table.min()), int(quantizer.table.max()), int(quantizer.zero_point)
        case DynamicActivationQuantizer():
            return 0, 255, 0
        case _:
            return None
