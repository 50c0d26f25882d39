"""What quantizers ask of a training loop: that it moves their schedules, and adds their penalties to the loss."""

import torch
from torch import Tensor, nn

from isobit.core.errors import SettingError
from isobit.graph.insert import slots


def advance(model: nn.Module, progress: float) -> int:
    """Move the schedules of all quantizers to `progress`, the part of the training that is done, from 0 to 1.

    Call it at the beginning of each epoch, with `epoch / epochs`. Gives how many quantizers have a schedule (SLB's
    temperature, IR-Net's steepness, INQ's frozen share); 0 says that the call changed nothing.
    `model` may be wrapped, as by DistributedDataParallel. Raises SettingError for another `progress`.
    """
    if not 0 <= progress <= 1:
        raise SettingError(f"progress is the part of the training that is done, from 0 to 1, got {progress!r}")
    found = [move for slot in slots(model) if callable(move := getattr(slot.quantizer, "advance", None))]
    for move in found:
        move(progress)
    return len(found)


def penalty(model: nn.Module) -> Tensor:
    """What the quantizers add to the loss, as PACT's λ α²; a scalar, 0 where none of them has a penalty."""
    found = [part() for slot in slots(model) if callable(part := getattr(slot.quantizer, "penalty", None))]
    return torch.stack(found).sum() if found else torch.zeros(())
