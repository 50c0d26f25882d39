"""Readable, stable names of a graph's nodes; rules, reports and error texts use them."""

from typing import Any

import torch
from torch import fx

KEY = "isobit_name"
"""Where a node keeps a name that was fixed."""


def names(graph: fx.Graph) -> dict[fx.Node, str]:
    """A unique name for each node.

    A module call is its dotted path, the second call of a shared module has ":2" behind it. A function is the path
    of the module whose forward calls it and the function's name, as in "layer1.0.add". A node that `name_nodes`
    named keeps that name, whatever was inserted or erased since.
    """
    given = {n: n.meta[KEY] for n in graph.nodes if KEY in n.meta}
    kept: dict[str, fx.Node] = {}
    for node, name in given.items():
        kept.setdefault(name, node)
    taken = set(kept)
    found: dict[fx.Node, str] = {}
    for node in graph.nodes:
        if node in given and kept[given[node]] is node:
            found[node] = given[node]
            continue
        found[node] = _free(plain_name(node), taken)
        taken.add(found[node])
    return found


def name_nodes(graph: fx.Graph) -> None:
    """Fix the names of the nodes as they are now."""
    for node in graph.nodes:
        node.meta.pop(KEY, None)
    for node, name in names(graph).items():
        node.meta[KEY] = name


def display_name(node: fx.Node) -> str:
    """The name of one node, as `names` gives it."""
    fixed: str | None = node.meta.get(KEY)
    return fixed if fixed is not None else names(node.graph)[node]


def plain_name(node: fx.Node) -> str:
    """The name of a node before a repeated one gets its number."""
    if node.op in ("call_module", "get_attr"):
        return str(node.target)
    if node.op == "placeholder":
        return str(node.target).lstrip("*")
    if node.op == "output":
        return "output"
    owner = owner_path(node)
    return f"{owner}.{function_name(node.target)}" if owner else function_name(node.target)


def owner_path(node: fx.Node) -> str:
    """The dotted name of the user's module whose forward made `node`; empty for the network itself."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path = stack[-1][0].split("@")[0] if stack else ""
    return "" if path.startswith("_empty_nn_module_stack") else path


def function_name(target: Any) -> str:
    """The bare name of a function, an overload or a method.

    >>> function_name(torch.ops.aten.add.Tensor), function_name(torch.flatten), function_name("view")
    ('add', 'flatten', 'view')
    """
    if isinstance(target, torch._ops.OpOverload):
        return target._schema.name.split("::")[1].strip("_")
    return str(target if isinstance(target, str) else target.__name__).strip("_")


def _free(name: str, taken: set[str]) -> str:
    if name not in taken:
        return name
    count = 2
    while f"{name}:{count}" in taken:
        count += 1
    return f"{name}:{count}"
