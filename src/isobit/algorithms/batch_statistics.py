"""How far the inputs of batch norms are from the statistics that these keep: what images are distilled from."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from isobit.core.errors import UnsupportedError

BatchNorm = nn.modules.batchnorm._BatchNorm


def frozen_copy(net: nn.Module, *, method: str) -> nn.Module:
    """A copy in eval mode without gradients to its weights.

    Raises UnsupportedError for a network without batch norms that keep statistics.
    """
    frozen = copy.deepcopy(net).eval().requires_grad_(False)
    if not _norms(frozen):
        raise UnsupportedError(
            f"{type(net).__name__} has no batch norm with running statistics (or they are merged), and {method} learns "
            "from nothing else: use dead_leaves, or give the network as it was before batch norm was merged"
        )
    return frozen


@contextmanager
def watched(net: nn.Module) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """A list that every forward refills: for each norm (mean - its mean, standard deviation - its own), (channels,)."""
    found: list[tuple[Tensor, Tensor]] = []

    def see(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0]
        assert isinstance(norm.running_mean, Tensor) and isinstance(norm.running_var, Tensor)
        var, mean = torch.var_mean(x, [d for d in range(x.dim()) if d != 1], correction=0)
        eps = float(norm.eps)  # type: ignore[arg-type]
        found.append((mean - norm.running_mean, (var + eps).sqrt() - (norm.running_var + eps).sqrt()))

    hooks = [norm.register_forward_pre_hook(see) for norm in _norms(net)]
    hooks.append(net.register_forward_pre_hook(lambda *_: found.clear()))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _norms(net: nn.Module) -> list[nn.Module]:
    return [m for m in net.modules() if isinstance(m, BatchNorm) and m.running_mean is not None]
