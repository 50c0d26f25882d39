"""Which modules do something else in train mode that a graph, captured in eval mode, does not hold."""

import torch
from torch import fx, nn

from isobit.graph.leaves import reads_training
from isobit.graph.names import owner_path

Signature = list[tuple[str, str]]
"""For each operator of a trace the path of the module that calls it, and what it calls."""


def signature(graph: fx.Graph) -> Signature:
    """What a trace calls; sizes do not count."""
    calls = [n for n in graph.nodes if n.op in ("call_function", "call_module")]
    return [(owner_path(n), str(n.target)) for n in calls if not isinstance(n.meta.get("val"), torch.SymInt)]


def switched_off(graph: fx.Graph) -> set[str]:
    """The modules that hand their input through in eval mode; the graph calls them as a whole."""
    return {str(n.target) for n in graph.nodes if n.meta.get("switches_off")}


def suspects(graph: fx.Graph, root: nn.Module) -> dict[str, str]:
    """The modules that a fresh trace went through whose forward looks at `self.training`, and their classes."""
    called = {str(n.target) for n in graph.nodes if n.op == "call_module"}
    owners = sorted({path for n in graph.nodes for path in _owners(n)} - called)
    found = {path: root.get_submodule(path) for path in owners}
    return {path: type(module).__name__ for path, module in found.items() if reads_training(module)}


def eval_only(found: dict[str, str], in_eval: Signature, in_train: Signature | None, without: set[str]) -> list[str]:
    """What to say about those of `found` that call something else in train mode; all where that trace is missing.

    What the modules `without` call does not count.
    """
    kinds: dict[str, list[str]] = {}
    for path, kind in found.items():
        if in_train is None or _below(in_eval, path, without) != _below(in_train, path, without):
            kinds.setdefault(kind, []).append(path or "the network")
    return [
        f"{paths[0]} ({kind}" + (f", and {len(paths) - 1} like it" if paths[1:] else "") + ") computes something else "
        "in train mode: the graph holds what it does in eval mode"
        for kind, paths in kinds.items()
    ]


def _below(calls: Signature, path: str, without: set[str]) -> Signature:
    inside = (path + ".",) if path else ("",)
    return [c for c in calls if (c[0] == path or c[0].startswith(inside)) and c[0] not in without]


def _owners(node: fx.Node) -> list[str]:
    stack = (node.meta.get("nn_module_stack") or {}).values()
    return [p for path, _ in stack if not (p := path.split("@")[0]).startswith("_empty_nn_module_stack")]
