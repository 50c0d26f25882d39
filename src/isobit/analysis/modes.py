"""Switching a prepared network for a measurement: slots and training flags, as they were afterwards."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from isobit.core.errors import CalibrationError
from isobit.graph.insert import slots
from isobit.graph.slots import Mode, Slot


@contextmanager
def slots_in_mode(of: nn.Module | Iterable[Slot], mode: Mode) -> Iterator[list[Slot]]:
    """Set slots, or all of a model, to one mode; afterwards, also after an exception, each has the one it had.

    >>> slot = Slot(nn.Identity(), name="x")
    >>> with slots_in_mode([slot], "quantize"):
    ...     slot.mode
    'quantize'
    >>> slot.mode
    'float'
    """
    chosen = slots(of) if isinstance(of, nn.Module) else list(of)
    before = [slot.mode for slot in chosen]
    try:
        for slot in chosen:
            slot.mode = mode
        yield chosen
    finally:
        for slot, old in zip(chosen, before, strict=True):
            slot.mode = old


@contextmanager
def in_eval(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; afterwards every module is back in the mode it had."""
    before = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.inference_mode():
            yield
    finally:
        for module, mode in before:
            module.training = mode


@contextmanager
def measured(model: nn.Module) -> Iterator[frozenset[Slot]]:
    """Eval mode with all slots in float; yields the slots that quantize, to be switched on one by one.

    Raises CalibrationError where none does: there is nothing to measure before calibration.
    """
    active = frozenset(slot for slot in slots(model) if slot.mode == "quantize")
    if not active:
        raise CalibrationError("no quantizer of this model is calibrated: use isobit.quantize, or calibrate it first")
    with in_eval(model), slots_in_mode(model, "float"):
        yield active
