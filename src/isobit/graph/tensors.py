"""The tensors of a captured graph: who makes them, who reads them, and which ones an engine never rounds."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from isobit.graph.ops import op_kind

PASSIVE = frozenset({"identity", "dropout"})
"""Kinds that leave a tensor as it is at inference."""


@dataclass(frozen=True, eq=False)
class Tensors:
    """Views of one graph that placement, conversion and analysis share."""

    graph: fx.Graph
    kinds: Mapping[fx.Node, str]

    def inputs(self, node: fx.Node) -> list[fx.Node]:
        """The float tensors that a node computes with; `getitem` looks through to what was split."""
        source = node.args[0] if self.kinds[node] == "getitem" else node
        if not isinstance(source, fx.Node):
            return []
        return [n for n in source.all_input_nodes if is_float_tensor(n)]

    def readers(self, tensor: fx.Node) -> list[fx.Node]:
        """The ops that read a tensor, seen through what is `transparent`."""
        found: list[fx.Node] = []
        for user in tensor.users:
            if self.transparent(user):
                found += self.readers(user)
            elif self.kinds[user] == "shape":
                continue
            elif not is_float_tensor(user) and not _is_output(user) and self.kinds[user] in ("slice", "getitem"):
                found += [reader for reader in user.users if self.kinds[reader] == "getitem"]
            else:
                found.append(user)
        return found

    def only_reader(self, tensor: fx.Node) -> fx.Node | None:
        """The reader, where there is exactly one and it reads the tensor once."""
        readers = self.readers(tensor)
        if len(readers) != 1 or _is_output(readers[0]):
            return None
        return readers[0] if self.inputs(readers[0]).count(self.last_alias(tensor)) == 1 else None

    def last_alias(self, tensor: fx.Node) -> fx.Node:
        """The end of the chain of transparent ops behind a tensor."""
        users = [u for u in tensor.users if self.kinds[u] != "shape"]
        if len(users) == 1 and self.transparent(users[0]):
            return self.last_alias(users[0])
        return tensor

    def source(self, tensor: fx.Node) -> fx.Node:
        """The tensor in front of transparent ops."""
        while self.transparent(tensor):
            (tensor,) = self.inputs(tensor)
        return tensor

    def transparent(self, node: fx.Node) -> bool:
        """Whether an engine sees through this node: dropout, identity, or what its reader absorbs."""
        return self.kinds[node] in PASSIVE or self.absorbed(node)

    def absorbed(self, node: fx.Node) -> bool:
        """Whether the only reader takes this op in: a conv a zero padding, a slice that of another axis.

        A file has one op for both.
        """
        if len(node.users) != 1:
            return False
        (user,) = node.users
        if self.kinds[node] == "pad":
            return self.kinds[user] == "conv"
        both = node.target is user.target is torch.ops.aten.slice.Tensor
        return both and is_float_tensor(node) and _axis(node) != _axis(user)


def tensors_of(model: fx.GraphModule) -> Tensors:
    """Classify every node of a captured model."""
    modules = dict(model.named_modules(remove_duplicate=False))
    return Tensors(model.graph, {node: op_kind(node, modules) for node in model.graph.nodes})


def is_float_tensor(node: fx.Node) -> bool:
    """Whether a node makes one floating-point tensor."""
    value = node.meta.get("val")
    if isinstance(value, Tensor):
        return value.dtype.is_floating_point
    if node.op == "get_attr":
        found = attribute_of(node)
        return isinstance(found, Tensor) and found.dtype in (
            torch.float32,
            torch.float64,
            torch.float16,
            torch.bfloat16,
        )
    return False


def attribute_of(node: fx.Node) -> object:
    """What a get_attr node reads, None where there is nothing."""
    value: object = node.graph.owning_module
    for part in str(node.target).split("."):
        value = getattr(value, part, None)
    return value


def _axis(slice_node: fx.Node) -> int:
    """The axis of a slice, counted from the first."""
    axis = slice_node.args[1] if len(slice_node.args) > 1 else 0
    assert isinstance(axis, int)
    return axis % int(slice_node.meta["val"].ndim)


def _is_output(node: fx.Node) -> bool:
    return node.op == "output"
