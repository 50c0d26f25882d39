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
        """The ops that read a tensor, seen through dropout and identity, and through a pad that a conv absorbs."""
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
        """The end of the chain of dropout, identity and absorbed pads behind a tensor."""
        users = [u for u in tensor.users if self.kinds[u] != "shape"]
        if len(users) == 1 and self.transparent(users[0]):
            return self.last_alias(users[0])
        return tensor

    def source(self, tensor: fx.Node) -> fx.Node:
        """The tensor behind dropout, identity and absorbed pads."""
        while self.transparent(tensor):
            (tensor,) = self.inputs(tensor)
        return tensor

    def transparent(self, node: fx.Node) -> bool:
        """Whether an engine sees through this node: dropout, identity, a pad that a conv absorbs."""
        return self.kinds[node] in PASSIVE or self.absorbed_pad(node)

    def absorbed_pad(self, node: fx.Node) -> bool:
        """Whether this is a zero padding whose only reader is a convolution, which then pads by itself."""
        if self.kinds[node] != "pad" or len(node.users) != 1:
            return False
        (user,) = node.users
        return self.kinds[user] == "conv"


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


def _is_output(node: fx.Node) -> bool:
    return node.op == "output"
