"""After torch.export: constants become buffers; asserts, copies of constants and empty slices go."""

import sys
from typing import Any

import torch
from torch import Tensor, fx, nn

from isobit.graph.captured import tensor_at

aten = torch.ops.aten

_ASSERTS = {
    aten._assert_tensor_metadata.default,
    aten._assert_scalar.default,
    aten._assert_async.msg,
    aten.sym_constrain_range_for_size.default,
    aten.sym_constrain_range.default,
}
_COPIES = {aten.lift_fresh_copy.default, aten.detach_.default, aten.detach.default, aten.alias.default}


def clean(graph: fx.Graph, root: nn.Module, source: nn.Module) -> None:
    """Tidy `graph`, an export of `root` whose constants are attributes of `source`."""
    for node in list(graph.nodes):
        if node.op == "get_attr":
            _own(node, root, source)
        elif node.op == "call_function":
            if node.target in _ASSERTS:
                graph.erase_node(node)
            elif _is_empty_slice(node) or (node.target in _COPIES and _constant(node.args[0]) and not _written(node)):
                node.replace_all_uses_with(node.args[0])
                graph.erase_node(node)
    for node in reversed(list(graph.nodes)):
        if not node.users and node.op not in ("placeholder", "output") and not _has_effect(node):
            graph.erase_node(node)


def _own(node: fx.Node, root: nn.Module, source: nn.Module) -> None:
    """Let a constant be a buffer of `root` that is not saved, so that it follows `.to(device)`."""
    path = str(node.target)
    if tensor_at(root, path) is not None:
        return
    value: Any = source
    for part in path.split("."):
        value = getattr(value, part)
    name = "constant_" + path.replace(".", "_")
    if isinstance(value, Tensor):
        if name not in root._buffers:
            root.register_buffer(name, value.detach(), persistent=False)
    elif isinstance(value, nn.Module):
        root._modules.setdefault(name, value)
    else:
        return
    node.target = name


def _constant(value: Any) -> bool:
    return isinstance(value, fx.Node) and value.op == "get_attr"


def _is_empty_slice(node: fx.Node) -> bool:
    """`x[:]` along one dimension, which indexing such as x[:, 0] leaves behind."""
    if node.target is not aten.slice.Tensor or len(node.args) < 4:
        return False
    return tuple(node.args[2:]) in ((0, sys.maxsize), (0, sys.maxsize, 1), (None, None), (None, sys.maxsize))


def _written(node: fx.Node) -> bool:
    return any(
        isinstance(u.target, torch._ops.OpOverload) and u.target._schema.is_mutable and u.args[:1] == (node,)
        for u in node.users
    )


def _has_effect(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable
