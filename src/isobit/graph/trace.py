"""The graph of a network: by torch.export with opaque leaves, else by torch.fx."""

import copy
import io
import logging
import operator
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import fx, nn
from torch.export import Dim, ShapesCollection
from torch.utils import _pytree as pytree

from isobit.graph.check import TRACED
from isobit.graph.cleanup import clean
from isobit.graph.functional import modules_for_functions
from isobit.graph.inplace import functionalise
from isobit.graph.leaves import Markers, is_leaf, marked
from isobit.graph.modes import eval_only, signature, suspects, switched_off
from isobit.graph.names import name_nodes
from isobit.graph.refusal import refused
from isobit.graph.samples import Samples
from isobit.graph.source import line_of_node

Leaves = tuple[type[nn.Module], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Trace:
    """A graph over the modules of a network, how it was found, and what the user should know about it."""

    graph: fx.Graph
    method: Literal["export", "symbolic_trace"]
    notes: list[str]


def trace(root: nn.Module, samples: Samples, *, dynamic: bool, leaves: Leaves) -> Trace:
    """Trace `root`, in eval mode; its functional layers become modules of it. Raises CaptureError."""
    sizes = [TRACED] + ([samples.batch] if samples.batch > 1 else []) if dynamic else [samples.batch]
    failed: list[tuple[Exception, nn.Module]] = []
    for size in sizes:
        traced, sized = sharing(root), samples.of(size) if dynamic else samples
        try:
            source = export(traced, sized, dynamic=dynamic, leaves=leaves)
        except Exception as error:
            failed.append((error, traced))
            continue
        return _over_modules(root, source, sized, dynamic=dynamic, leaves=leaves)
    first, traced = failed[0]
    try:
        return _symbolic(root, leaves, first)
    except Exception:
        raise refused(first, traced, samples) from first


def sharing(root: nn.Module) -> nn.Module:
    """A copy with the same parameters: what a forward caches on its modules stays on the copy."""
    return copy.deepcopy(root, {id(p): p for p in root.parameters()})


def export(traced: nn.Module, samples: Samples, *, dynamic: bool, leaves: Leaves) -> fx.GraphModule:
    """Export `traced`, whose leaves become module calls; everything else is an ATen operator."""
    shapes: Any = ShapesCollection()  # type: ignore[no-untyped-call]
    if dynamic:
        for x in samples.batched():
            shapes[x] = {0: Dim.AUTO}
    with marked(traced, leaves) as markers, _quiet():
        program = torch.export.export(
            traced, samples.args, samples.kwargs, dynamic_shapes=shapes if dynamic else None, strict=False
        )
        module: fx.GraphModule = program.module(check_guards=False)
        _call_modules(module.graph, markers)
    return module


def _over_modules(root: nn.Module, source: fx.GraphModule, samples: Samples, *, dynamic: bool, leaves: Leaves) -> Trace:
    graph = source.graph
    in_eval, found = signature(graph), suspects(graph, root)
    twin = sharing(root).train() if found else root
    clean(graph, root, source)
    switching = modules_for_functions(graph, root)
    found = {path: kind for path, kind in found.items() if path not in switching}
    kept = functionalise(graph, dict(root.named_modules(remove_duplicate=False)))
    clean(graph, root, source)
    name_nodes(graph)
    notes = [f"an in-place operator stays in place: {line_of_node(n) or n.name}" for n in kept]
    if found:
        try:
            in_train = signature(export(twin, samples, dynamic=dynamic, leaves=leaves).graph)
        except Exception:
            in_train = None
        notes += eval_only(found, in_eval, in_train, switching | switched_off(graph))
    return Trace(graph=graph, method="export", notes=notes)


@contextmanager
def _quiet() -> Iterator[None]:
    """torch.export logs and prints what it raises as well."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def _call_modules(graph: fx.Graph, markers: Markers) -> None:
    """Turn each call of `isobit::leaf` into a call of its module."""
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target is not torch.ops.isobit.leaf.default:
            continue
        tensors, number = node.args
        marker = markers[number]
        with graph.inserting_before(node):
            call = graph.create_node("call_module", marker.name, marker.arguments(iter(tensors)))
        call.meta = {**node.meta, "switches_off": marker.switches_off}
        assert marker.spec is not None
        picks = _picks(marker.spec)
        for get in list(node.users):
            value = _pick(graph, node, call, picks[get.args[1]])
            value.meta = dict(get.meta) if value is not call else {**get.meta, **_where(call)}
            get.replace_all_uses_with(value)
            graph.erase_node(get)
        graph.erase_node(node)


def _where(node: fx.Node) -> dict[str, Any]:
    return {k: node.meta[k] for k in ("nn_module_stack", "stack_trace", "switches_off") if k in node.meta}


def _picks(spec: pytree.TreeSpec) -> list[tuple[Any, ...]]:
    """The path to each leaf of an output structure, in order."""
    tree = pytree.tree_unflatten(list(range(spec.num_leaves)), spec)
    found = pytree.tree_flatten_with_path(tree)[0]
    return [tuple(getattr(k, "idx", getattr(k, "key", None)) for k in path) for path, _ in found]


def _pick(graph: fx.Graph, before: fx.Node, value: fx.Node, path: tuple[Any, ...]) -> fx.Node:
    for key in path:
        with graph.inserting_before(before):
            value = graph.call_function(operator.getitem, (value, key))
    return value


class _Tracer(fx.Tracer):
    record_stack_traces = True

    def __init__(self, leaves: Leaves) -> None:
        super().__init__()
        self.leaves = leaves

    def is_leaf_module(self, m: nn.Module, _qualified: str) -> bool:
        return is_leaf(m, self.leaves)


def _symbolic(root: nn.Module, leaves: Leaves, cause: Exception) -> Trace:
    graph = _Tracer(leaves).trace(sharing(root))
    found = suspects(graph, root)
    switching = modules_for_functions(graph, root)
    for node in reversed(list(graph.nodes)):
        if node.op == "get_attr" and not node.users:
            graph.erase_node(node)
    name_nodes(graph)
    reason = (str(cause).strip() or type(cause).__name__).splitlines()[0]
    notes = [f"torch.export failed, torch.fx traced it instead: {reason}"]
    found = {path: kind for path, kind in found.items() if path not in switching}
    return Trace(graph=graph, method="symbolic_trace", notes=notes + eval_only(found, [], None, set()))
