"""Capture: a network becomes an editable graph that calls the user's own modules under their own names."""

import copy
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

from isobit.core.errors import ModelError
from isobit.graph.captured import Captured, CaptureRecord
from isobit.graph.check import TRACED, Reference, compare
from isobit.graph.guards import batch_limits
from isobit.graph.samples import samples_of
from isobit.graph.trace import sharing, trace


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
        reference = Reference.of(sharing(root), samples.varied(), dynamic=dynamic_batch) if check else None
        found = trace(root, samples, dynamic=dynamic_batch, leaves=leaves)
        if reference is None and found.method == "symbolic_trace":  # which does not even look at the example
            reference = Reference.of(sharing(root), samples.varied(), dynamic=dynamic_batch)
        captured = Captured(root, found.graph, CaptureRecord(method=found.method))
        if reference is not None:
            compare(reference, captured, traced=TRACED if dynamic_batch else None)
        notes += found.notes + [f"the captured graph holds where {limit}" for limit in batch_limits(captured.graph)]
    for name, module in captured.named_modules():
        module.training = modes.get(name, modes.get(name.rpartition(".")[0], modes[""]))
    seconds = time.perf_counter() - start
    captured.meta["capture"] = CaptureRecord(method=found.method, notes=tuple(notes), seconds=seconds)
    if isinstance(model, fx.GraphModule):
        captured.meta["notes"] = tuple(model.meta.get("notes", ()))  # of an imported file
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
    reserved = {*dir(fx.GraphModule), "meta"} - set(dir(nn.Module))
    if clash := sorted(reserved & {*model._modules, *model._parameters, *model._buffers}):
        raise ModelError(f"{type(model).__name__}.{clash[0]} has a name that torch.fx.GraphModule needs: rename it")
    try:
        root = copy.deepcopy(model)
    except Exception as error:
        raise ModelError(
            f"{type(model).__name__} cannot be deep-copied, and capture works on a copy: {error}"
        ) from error
    return root, _without_hooks(root)


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
