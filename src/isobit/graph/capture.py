"""Capture: a network becomes an editable graph that calls the user's own modules under their own names."""

import copy
import io
import logging
import operator
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ShapesCollection
from torch.utils import _pytree as pytree

from isobit.core.errors import ModelError
from isobit.graph.captured import Captured, CaptureRecord
from isobit.graph.check import TRACED, Reference, compare
from isobit.graph.cleanup import clean
from isobit.graph.functional import modules_for_functions
from isobit.graph.guards import batch_limits
from isobit.graph.inplace import functionalise
from isobit.graph.leaves import Markers, is_leaf, marked, reads_training
from isobit.graph.names import name_nodes
from isobit.graph.refusal import refused
from isobit.graph.samples import Samples, samples_of
from isobit.graph.source import line_of_node


def capture(
    model: nn.Module,
    example: Tensor | tuple[Any, ...],
    *,
    kwargs: dict[str, Any] | None = None,
    dynamic_batch: bool = True,
    leaves: tuple[type[nn.Module], ...] = (),
    check: bool = True,
) -> Captured:
    """Capture the graph of `model`, which stays untouched.

    `example` are the positional inputs of its forward (a tensor, or a tuple), `kwargs` the named ones; dimension 0
    is the batch. Modules of the types `leaves` stay one node, as the layers of torch.nn do. With `check` the
    captured network has to return the same bits as `model` in eval mode, at another batch size than was traced.

    Raises ModelError where `model` is no module; CaptureError where the example does not fit, where the graph
    depends on the data, or where a batch size is written into the network.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    >>> [n.target for n in capture(net, torch.zeros(1, 3, 8, 8)).graph.nodes if n.op == "call_module"]
    ['0', '1']
    """
    start = time.perf_counter()
    root, notes = _private(model)
    samples = samples_of(example, kwargs)
    modes = {name: m.training for name, m in root.named_modules()}
    root.eval()
    with _undisturbed(root):
        reference = Reference.of(_sharing(root), samples.varied(), dynamic=dynamic_batch) if check else None
        graph, method, more = _traced(root, samples, dynamic_batch, leaves)
        captured = Captured(root, graph, CaptureRecord(method=method))
        if reference is not None:
            compare(reference, captured, traced=TRACED if dynamic_batch else None)
        more += [f"the captured graph holds where {limit}" for limit in batch_limits(captured.graph)]
    for name, module in captured.named_modules():
        module.training = modes.get(name, modes.get(name.rpartition(".")[0], modes[""]))
    seconds = time.perf_counter() - start
    captured.meta["capture"] = CaptureRecord(method=method, notes=(*notes, *more), seconds=seconds)
    return captured


def _private(model: nn.Module) -> tuple[nn.Module, list[str]]:
    """A deep copy without the user's forward hooks, and what to say about it."""
    if not isinstance(model, nn.Module):
        raise ModelError(f"expected an nn.Module, got {type(model).__name__}: give the network itself")
    if isinstance(model, (torch.jit.ScriptModule, torch.jit.ScriptFunction)):
        raise ModelError("a TorchScript network has no Python code to capture: give the nn.Module it was made from")
    if isinstance(model, torch._dynamo.OptimizedModule):
        raise ModelError("this is the result of torch.compile: give the network itself, and compile it afterwards")
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        raise ModelError(f"this is a {type(model).__name__} wrapper: give the network inside it, `model.module`")
    lazy = [k for k, p in (*model.named_parameters(), *model.named_buffers()) if nn.parameter.is_lazy(p)]
    if lazy:
        raise ModelError(f"{lazy[0]} has no shape yet, its layer is lazy: run it once on real data before")
    try:
        root = copy.deepcopy(model)
    except Exception as error:
        raise ModelError(
            f"{type(model).__name__} cannot be deep-copied, and capture works on a copy: {error}"
        ) from error
    return root, _without_hooks(root)


def _sharing(root: nn.Module) -> nn.Module:
    """A copy with the same parameters: what a forward caches on its modules stays on the copy."""
    return copy.deepcopy(root, {id(p): p for p in root.parameters()})


def _without_hooks(root: nn.Module) -> list[str]:
    """Remove forward hooks that are not part of torch (weight norm and the like are)."""
    notes = []
    for name, module in root.named_modules():
        for store in (module._forward_hooks, module._forward_pre_hooks):
            foreign = [k for k, hook in store.items() if not _of_torch(hook)]
            for key in foreign:
                del store[key]
            if foreign:
                notes.append(f"{name or 'the network'}: {len(foreign)} forward hook(s) are not in the captured network")
    return notes


def _of_torch(hook: Any) -> bool:
    module = getattr(hook, "__module__", None) or type(hook).__module__
    return str(module).startswith("torch.")


@contextmanager
def _undisturbed(root: nn.Module) -> Iterator[None]:
    """Keep the buffers, the random state and the warnings of the caller; no fused kernel of nn.MultiheadAttention."""
    buffers = {name: b.detach().clone() for name, b in root.named_buffers()}
    fast = torch.backends.mha.get_fastpath_enabled()
    devices = sorted({p.device.index or 0 for p in root.parameters() if p.device.type == "cuda"})
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.random.fork_rng(devices=devices), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        with torch.no_grad():
            for name, b in root.named_buffers():
                if name in buffers and not torch.equal(b, buffers[name]):
                    b.copy_(buffers[name])


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


Trace = tuple[fx.Graph, str, list[str]]


def _traced(root: nn.Module, samples: Samples, dynamic: bool, leaves: tuple[type[nn.Module], ...]) -> Any:
    """The graph by torch.export, else by torch.fx; raises CaptureError with the first cause."""
    sizes = [TRACED] + ([samples.batch] if samples.batch > 1 else []) if dynamic else [samples.batch]
    failed: list[tuple[Exception, nn.Module]] = []
    for size in sizes:
        traced = _sharing(root)
        try:
            graph, notes = _exported(root, traced, samples.of(size) if dynamic else samples, dynamic, leaves)
            return graph, "export", notes
        except Exception as error:
            failed.append((error, traced))
    first, traced = failed[0]
    try:
        graph, notes = _symbolic(root, leaves)
        reason = str(first).strip().splitlines()[0] if str(first).strip() else type(first).__name__
        return graph, "symbolic_trace", [f"torch.export failed, torch.fx traced it instead: {reason}", *notes]
    except Exception:
        raise refused(first, traced, samples) from first


def _exported(
    root: nn.Module, traced: nn.Module, samples: Samples, dynamic: bool, leaves: tuple[type[nn.Module], ...]
) -> tuple[fx.Graph, list[str]]:
    """Trace the copy `traced` and turn the trace into a graph over the modules of `root`."""
    shapes: Any = ShapesCollection()  # type: ignore[no-untyped-call]
    if dynamic:
        for x in samples.batched():
            shapes[x] = {0: Dim.AUTO}
    with marked(traced, leaves) as markers, _quiet():
        program = torch.export.export(
            traced, samples.args, samples.kwargs, dynamic_shapes=shapes if dynamic else None, strict=False
        )
        module = program.module(check_guards=False)
        graph = module.graph
        _call_modules(graph, markers)
    notes = _finish(graph, root, module)
    return graph, notes


def _finish(graph: fx.Graph, root: nn.Module, source: nn.Module) -> list[str]:
    clean(graph, root, source)
    switching = modules_for_functions(graph, root)
    modules = dict(root.named_modules(remove_duplicate=False))
    kept = functionalise(graph, modules)
    clean(graph, root, source)
    name_nodes(graph)
    return _unswitched(graph, root, switching) + [
        f"an in-place operator stays in place: {line_of_node(n) or n.name}" for n in kept
    ]


def _unswitched(graph: fx.Graph, root: nn.Module, switching: set[str]) -> list[str]:
    """Which modules of the user look at `self.training` without a layer that switches coming out of it."""
    called = {str(n.target) for n in graph.nodes if n.op == "call_module"}
    owners = {path for n in graph.nodes for path in _owners(n)} - called - switching
    found: dict[str, list[str]] = {}
    for path in sorted(owners):
        module = root.get_submodule(path)
        if reads_training(module):
            found.setdefault(type(module).__name__, []).append(path or "the network")
    return [
        f"{paths[0]} ({kind}" + (f", and {len(paths) - 1} like it" if paths[1:] else "") + ") reads self.training: "
        "the graph holds what it does in eval mode"
        for kind, paths in found.items()
    ]


def _owners(node: fx.Node) -> list[str]:
    stack = (node.meta.get("nn_module_stack") or {}).values()
    return [p for path, _ in stack if not (p := path.split("@")[0]).startswith("_empty_nn_module_stack")]


def _call_modules(graph: fx.Graph, markers: Markers) -> None:
    """Turn each call of `isobit::leaf` into a call of its module."""
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target is not torch.ops.isobit.leaf.default:
            continue
        tensors, number = node.args
        marker = markers[number]
        with graph.inserting_before(node):
            call = graph.create_node("call_module", marker.name, marker.arguments(iter(tensors)))
        call.meta = dict(node.meta)
        call.meta["switches_off"] = marker.switches_off
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

    def __init__(self, leaves: tuple[type[nn.Module], ...]) -> None:
        super().__init__()
        self.leaves = leaves

    def is_leaf_module(self, m: nn.Module, _qualified: str) -> bool:
        return is_leaf(m, self.leaves) or isinstance(m, nn.RNNBase)


def _symbolic(root: nn.Module, leaves: tuple[type[nn.Module], ...]) -> tuple[fx.Graph, list[str]]:
    graph = _Tracer(leaves).trace(_sharing(root))
    switching = modules_for_functions(graph, root)
    for node in reversed(list(graph.nodes)):
        if node.op == "get_attr" and not node.users:
            graph.erase_node(node)
    name_nodes(graph)
    return graph, _unswitched(graph, root, switching)
