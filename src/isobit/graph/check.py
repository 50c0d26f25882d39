"""The check after a capture: the captured network returns the same bits as the original, at another batch size."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from isobit.core.errors import CaptureError
from isobit.graph.captured import Captured
from isobit.graph.guards import batch_limits
from isobit.graph.samples import Samples
from isobit.graph.source import line_of_error, line_of_node

TRACED = 13
"""Samples of the traced batch: prime and rare, so that this number in the graph is a batch size written into it."""

CHECKED = 2
"""Samples of the check: another number than is traced, and few, because they run in full. One more where the
example has just as many."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """What the network returned in eval mode for `samples`."""

    samples: Samples
    outputs: tuple[Any, ...]
    spec: pytree.TreeSpec

    @classmethod
    def of(cls, root: nn.Module, samples: Samples, *, dynamic: bool) -> "Reference":
        """Run `root`; raises CaptureError where the example does not fit, or only its own batch size does."""
        first: Exception | None = None
        other = CHECKED if samples.batch != CHECKED else CHECKED + 1
        for size in (other, 2 * samples.batch) if dynamic else ():
            chosen = samples.of(size)
            try:
                out = run(root, chosen)
                break
            except Exception as error:
                first = first or error
        else:
            chosen = samples
            try:
                out = run(root, chosen)
            except Exception as error:
                raise _unfit(root, samples, error) from error
            if first is not None:
                raise _one_size(root, samples, first) from first
        flat, spec = pytree.tree_flatten(out)
        return cls(samples=chosen, outputs=tuple(flat), spec=spec)


def run(module: nn.Module, samples: Samples) -> Any:
    """The outputs for `samples`, from a fixed seed and without gradients."""
    with torch.no_grad():
        torch.manual_seed(0)
        return module(*samples.args, **samples.kwargs)


def compare(reference: Reference, captured: Captured, *, traced: int | None) -> None:
    """Raise CaptureError where `captured` does not return the same bits."""
    samples = reference.samples
    try:
        flat, spec = pytree.tree_flatten(run(captured, samples))
    except Exception as error:
        raise CaptureError(
            f"the captured graph does not run with {samples.batch} samples: {error}\n  "
            + _suspect(captured.graph, traced, error)
        ) from error
    if len(flat) != len(reference.outputs):
        raise CaptureError(f"the captured graph returns {len(flat)} outputs, the network {len(reference.outputs)}")
    for i, (got, want) in enumerate(zip(flat, reference.outputs, strict=True)):
        if difference := _difference(got, want):
            raise CaptureError(
                f"output {i} of the captured graph differs from the network's with {samples.batch} samples: "
                f"{difference}.\n  {_suspect(captured.graph, traced, None)}"
            )
    del spec


def _difference(got: Any, want: Any) -> str:
    if not isinstance(want, Tensor) or not isinstance(got, Tensor):
        return "" if got == want else f"{got!r} instead of {want!r}"
    if got.shape != want.shape:
        return f"shape {tuple(got.shape)} instead of {tuple(want.shape)}"
    if got.dtype != want.dtype:
        return f"type {got.dtype} instead of {want.dtype}"
    if torch.equal(got, want) or torch.allclose(got, want, rtol=0.0, atol=0.0, equal_nan=True):
        return ""
    worst = (got.double() - want.double()).abs().max().item()
    return f"largest difference {worst:.3g}"


def _suspect(graph: fx.Graph, traced: int | None, error: Exception | None) -> str:
    """Name the line where the traced batch size became a number of the graph."""
    limits = batch_limits(graph)
    if limits:
        limit = next((x for x in limits if x.equal), limits[0])
        return (
            f"the batch size was baked in at {limit.line}\n  where the graph became one for {limit.condition} only "
            f"({TRACED} samples were traced): let forward take it from x.shape[0], without int() or a choice"
        )
    if traced is not None:
        for node in graph.nodes:
            numbers = [a for a in pytree.tree_leaves((node.args, node.kwargs)) if type(a) is int]
            if traced in numbers and (line := line_of_node(node)):
                return f"the batch size was baked in at {line}"
    place = line_of_error(error) if error is not None else ""
    where = f" (it failed at {place})" if place else ""
    return f"a batch size, or a choice that depends on it, was baked in{where}: let forward take it from x.shape[0]"


def _unfit(root: nn.Module, samples: Samples, error: Exception) -> CaptureError:
    place = line_of_error(error)
    return CaptureError(
        f"the example does not fit the forward of {type(root).__name__}: its shapes are {samples.shapes()}; "
        f"{type(error).__name__}: {error}" + (f"\n  at {place}" if place else "")
    )


def _one_size(root: nn.Module, samples: Samples, error: Exception) -> CaptureError:
    place = line_of_error(error)
    return CaptureError(
        f"{type(root).__name__} works with {samples.batch} samples only: the batch size was baked in"
        + (f" at {place}" if place else "")
        + f" ({error}). Let forward take it from x.shape[0], or capture with dynamic_batch=False"
    )
