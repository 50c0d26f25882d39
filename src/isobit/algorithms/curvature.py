"""Curvature: gradient and Hessian diagonal of the loss at the output of each quantizer that asks for them (EWGS)."""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from isobit.core.batches import Batch
from isobit.core.rounding import uniform_noise
from isobit.graph.insert import SLOTS, slots
from isobit.graph.slots import Slot

PROBES = 5
"""Random vectors per quantizer and batch; a trace has thousands of terms. EWGS's code takes up to 50."""

BATCHES = 3
"""Batches of one update, as in EWGS's code."""


def curious(model: nn.Module) -> list[Slot]:
    """The slots whose quantizers have a method `update_delta`."""
    return [slot for slot in slots(model) if callable(getattr(slot.quantizer, "update_delta", None))]


def show_curvature(
    model: nn.Module, data: Iterable[Batch], loss: Callable[[Batch], Tensor], *, probes: int = PROBES, seed: int = 0
) -> int:
    """Tell quantizers the gradient g of the loss to their output x̂, and the diagonal of its Hessian H there.

    diag(H) is estimated as the mean of v ⊙ H v over random signs v (Hutchinson), for one quantizer after the other:
    with signs for all at once, what couples them drowns it. `loss` gives the mean loss of a batch. A weight's g and
    diag(H) are the means over the batches; an activation's are put together. The model computes in eval mode meanwhile,
    and its state stays. Gives how many quantizers were told; one whose g is 0 is not. Time: for each quantizer, probe
    and batch that of about one step; memory: that of a step, twice.
    """
    watched = curious(model)
    if not watched:
        return 0
    modes = {module: module.training for module in model.modules()}
    found: list[list[tuple[Tensor, Tensor]]] = [[] for _ in watched]
    model.eval()
    try:
        for number, batch in enumerate(data):
            parts = _of_batch(watched, lambda b=batch: loss(b), probes=probes, seed=seed + number)  # type: ignore[misc]
            for kept, part in zip(found, parts, strict=True):
                kept.append(part)
    finally:
        for module, training in modes.items():
            module.training = training
    holder = model._modules.get(SLOTS)
    activations = set(holder.modules()) if holder is not None else set()
    told = 0
    for slot, pairs in zip(watched, found, strict=True):
        join: Any = torch.cat if slot in activations else lambda parts: torch.stack(parts).mean(0)
        gradient, diagonal = (join([pair[i] for pair in pairs]) for i in (0, 1))
        if bool(gradient.any()):
            slot.quantizer.update_delta(gradient, diagonal)  # type: ignore[operator]
            told += 1
    return told


def _of_batch(
    watched: list[Slot], loss: Callable[[], Tensor], *, probes: int, seed: int
) -> list[tuple[Tensor, Tensor]]:
    """Gradient and Hessian diagonal at each quantizer's output, for one batch."""
    outputs: dict[Slot, Tensor] = {}
    with ExitStack() as hooks:
        for slot in watched:
            keep = slot.quantizer.register_forward_hook(lambda _, _x, y, s=slot: outputs.__setitem__(s, y))
            hooks.callback(keep.remove)
        value = loss()
    tensors = [outputs[slot] for slot in watched]
    gradients = torch.autograd.grad(value, tensors, create_graph=True)
    parts = []
    for place, (g, x) in enumerate(zip(gradients, tensors, strict=True)):
        diagonal = torch.zeros_like(x)
        for probe in range(probes):
            v = _signs(x, seed=seed * 1_000_003 + place, step=probe)
            (product,) = torch.autograd.grad(g, x, v, retain_graph=True, materialize_grads=True)
            diagonal += v * product / probes
        parts.append((g.detach(), diagonal))
    return parts


def _signs(like: Tensor, *, seed: int, step: int) -> Tensor:
    return torch.where(uniform_noise(like, seed=seed, step=step) < 0.5, -1.0, 1.0).to(like.dtype)
