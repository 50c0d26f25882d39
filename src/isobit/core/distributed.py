"""What processes that train together have to agree on."""

from typing import Any

import torch
from torch import Tensor


def ranks() -> int:
    """How many processes train together; 1 where none do."""
    distributed = torch.distributed
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def mean_over_ranks(x: Tensor) -> tuple[Tensor, int]:
    """The mean of `x` over all processes, differentiable, and their number. Every process has to hold as much data."""
    count = ranks()
    if count == 1:
        return x, 1
    total: Tensor = _Sum.apply(x)  # type: ignore[no-untyped-call]
    return total / count, count


class _Sum(torch.autograd.Function):
    """The sum over all processes; each one's gradient is the sum of all gradients to it."""

    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        total = x.detach().clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(_: Any, grad: Tensor) -> Tensor:
        total = grad.clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(total)
        return total
