"""A constant added to the result of a layer without bias is its bias."""

from typing import Any

import torch
from torch import fx, nn

from isobit.graph.from_onnx.builder import Builder, rank
from isobit.graph.from_onnx.fusions.matching import constant_of, operands
from isobit.graph.from_onnx.layers import filled


def fuse(b: Builder, node: fx.Node) -> None:
    """conv(x) + c, x Wᵀ + c, where c has one entry for each channel of the result."""
    for x, c in operands(node, torch.add):
        constant = constant_of(b, c)
        if constant is None or not isinstance(x, fx.Node) or x.op != "call_module" or len(x.users) != 1:
            continue
        layer: Any = b.root.get_submodule(str(x.target))
        if type(layer) not in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d) or layer.bias is not None:
            continue
        axis = rank(x) - 1 if type(layer) is nn.Linear else 1
        channels = len(layer.get_parameter("weight"))
        if tuple(constant.shape) not in _shapes(channels, rank(x), axis):
            continue
        if sum(n.op == "call_module" and n.target == x.target for n in b.graph.nodes) > 1:
            continue
        filled(layer, bias=constant.reshape(-1).expand(channels))
        node.replace_all_uses_with(x)
        return


def _shapes(channels: int, dims: int, axis: int) -> list[tuple[int, ...]]:
    """Shapes of a constant that has one entry for each channel, with more or fewer leading axes."""
    behind = (1,) * (dims - 1 - axis)
    return [(1,) * before + (channels, *behind) for before in range(axis + 1)]
