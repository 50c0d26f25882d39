"""In-place operators become ordinary ones, so that a value of the graph never changes after it was computed."""

from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

aten = torch.ops.aten

_SCATTER: dict[Any, Any] = {
    aten.slice.Tensor: aten.slice_scatter.default,
    aten.select.int: aten.select_scatter.default,
}


Maker = Callable[[fx.Graph, fx.Node], fx.Node]


def _copied(graph: fx.Graph, node: fx.Node) -> fx.Node:
    """`x.copy_(y)`: y in the shape and type of x; aten.copy has no derivative."""
    old, value = node.args[0], node.args[1]
    like, given = (n.meta.get("val") for n in (old, value) if isinstance(n, fx.Node))
    if like is None or given is None or like.dtype != given.dtype:
        value = graph.call_function(aten.type_as.default, (value, old))
    if like is None or given is None or str(like.shape) != str(given.shape):
        value = graph.call_function(aten.expand_as.default, (value, old))
    return graph.call_function(aten.clone.default, (value,))


def _zeroed(graph: fx.Graph, node: fx.Node) -> fx.Node:
    return graph.call_function(aten.zeros_like.default, (node.args[0],))


_OWN: dict[Any, Maker] = {aten.copy_.default: _copied, aten.zero_.default: _zeroed}
"""Operators whose own pure form cannot be trained."""


def functionalise(graph: fx.Graph, modules: dict[str, nn.Module]) -> list[fx.Node]:
    """Replace `x.add_(y)`, `x[:, 0] = y` and modules with `inplace=True`; return the nodes that had to stay.

    A node stays as it is, in the right order, where what it overwrites is seen through another view.
    """
    kept = []
    for node in list(graph.nodes):
        if node.op == "call_module" and modules[node.target].__dict__.get("inplace") is True:
            if not _write(graph, node, node.args[0], lambda n: n):
                kept.append(node)
        elif node.op == "call_function" and (pure := _pure(node.target)) is not None:
            if _promotes(node):
                kept.append(node)
                continue
            made = _maker(graph, pure)
            if not _write(graph, node, node.args[0], made):
                kept.append(node)
    stay = {n.target for n in kept}
    for name, module in modules.items():
        if module.__dict__.get("inplace") is True and name not in stay:
            module.__dict__["inplace"] = False
    return kept


def _maker(graph: fx.Graph, pure: Maker) -> Callable[[fx.Node], fx.Node]:
    def make(old: fx.Node) -> fx.Node:
        with graph.inserting_before(old):
            new = pure(graph, old)
        new.meta = dict(old.meta)
        return new

    return make


def _pure(target: Any) -> Maker | None:
    """The operator that computes the same without writing, None where `target` writes nothing or has none."""
    if not isinstance(target, torch._ops.OpOverload) or not target._schema.is_mutable:
        return None
    if target in _OWN:
        return _OWN[target]
    name = target._schema.name.split("::")[1]
    if not name.endswith("_") or target.namespace != "aten":
        return None
    try:
        pure = getattr(getattr(aten, name[:-1]), target._overloadname)
    except AttributeError:
        return None
    if torch.Tag.generated in pure.tags:  # made by a code generator, without a derivative
        return None
    return lambda graph, old: graph.call_function(pure, old.args, old.kwargs)


def _promotes(node: fx.Node) -> bool:
    """Whether the pure operator could return another type than that of the overwritten tensor."""
    if node.target in (aten.copy_.default, aten.fill_.Tensor, aten.fill_.Scalar):
        return False
    values = [a.meta.get("val") for a in node.all_input_nodes]
    kinds = {v.dtype for v in values if isinstance(v, torch.Tensor) and v.dim() and v.dtype is not torch.bool}
    return len(kinds) > 1


def _write(graph: fx.Graph, node: fx.Node, written: Any, make: Callable[[fx.Node], fx.Node]) -> bool:
    """Make `node` pure and let everything after it that reads `written`, or what that is a view of, read the result."""
    chain = _chain(written)
    order = {n: i for i, n in enumerate(graph.nodes)}
    at = order[node]
    if chain is None or any(_seen_elsewhere(v, order, at, chain) for v in chain):
        return False

    def later(user: fx.Node) -> bool:
        return order.get(user, -1) > at

    depth = max((i for i, v in enumerate(chain) if any(map(later, v.users))), default=0)
    if any(view.target not in _SCATTER for view in chain[:depth]):
        return False
    new = make(node)
    if new is not node:
        node.replace_all_uses_with(new)
    value = new
    for i, view in enumerate(chain[: depth + 1]):
        view.replace_all_uses_with(value, delete_user_cb=later)
        if i < depth:
            base = chain[i + 1]
            with graph.inserting_after(value):
                value = graph.call_function(_SCATTER[view.target], (base, value, *view.args[1:]), dict(view.kwargs))
            value.meta = {k: v for k, v in new.meta.items() if k not in ("val", "tensor_meta")}
            value.meta["val"] = base.meta.get("val")
    if new is not node:
        graph.erase_node(node)
    return True


def _chain(written: Any) -> list[fx.Node] | None:
    """From the overwritten value down through views to the tensor that owns the memory; None for a parameter's."""
    chain = [written]
    while _is_view(chain[-1]):
        chain.append(chain[-1].args[0])
    return None if chain[-1].op == "get_attr" else chain


def _seen_elsewhere(value: fx.Node, order: dict[fx.Node, int], at: int, chain: list[fx.Node]) -> bool:
    """Whether a view of `value` outside `chain` is read after position `at`."""
    pending = [u for u in value.users if u not in chain and _is_view(u) and order.get(u, at) < at]
    while pending:
        view = pending.pop()
        if any(order.get(u, -1) > at for u in view.users):
            return True
        pending += [u for u in view.users if _is_view(u)]
    return False


def _is_view(node: Any) -> bool:
    if not isinstance(node, fx.Node) or node.op != "call_function":
        return False
    if isinstance(node.target, torch._ops.OpOverload):
        returns = node.target._schema.returns
        return any(r.alias_info is not None and not r.alias_info.is_write for r in returns)
    return bool(getattr(node.target, "__name__", "") == "getitem") and _is_view(node.args[0])
