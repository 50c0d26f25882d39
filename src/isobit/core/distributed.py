"""What processes that train together have to agree on."""

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
    from torch.distributed.nn.functional import all_reduce

    total: Tensor = all_reduce(x)  # type: ignore[no-untyped-call]
    return total / count, count
