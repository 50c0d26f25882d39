"""Optimizers of a training run: groups of parameters with rates of their own, and the learning rate of each step."""

import math
from typing import Any

import torch
from torch import nn

from isobit.algorithms.batch_norm import batch_norms
from isobit.algorithms.training import Training
from isobit.graph.slots import Slot


def optimization(
    model: nn.Module, settings: Training, *, steps_per_epoch: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
    """The optimizer and, per step, the schedule of the learning rate."""
    s = settings
    groups = parameter_groups(model, s)
    optimizer: torch.optim.Optimizer
    if s.optimizer == "sgd":
        nesterov = s.nesterov and s.momentum > 0
        optimizer = torch.optim.SGD(groups, lr=s.learning_rate, momentum=s.momentum, nesterov=nesterov)
    else:
        optimizer = torch.optim.AdamW(groups, lr=s.learning_rate)
    steps, warmup = s.epochs * steps_per_epoch, s.warmup_epochs * steps_per_epoch
    first, last = s.first_learning_rate / s.learning_rate, s.last_learning_rate / s.learning_rate

    def factor(step: int) -> float:
        return learning_rate_factor(step, steps=steps, warmup=warmup, schedule=s.schedule, first=first, last=last)

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def parameter_groups(model: nn.Module, settings: Training) -> list[dict[str, Any]]:
    """The optimizer's groups: weights with weight decay, then batch norms and quantizers with rates of their own."""
    found: dict[tuple[float, float], list[nn.Parameter]] = {}
    own: set[nn.Parameter] = set()
    for module in model.modules():
        if not isinstance(module, Slot):
            continue
        rate = getattr(module.quantizer, "learning_rate_scale", None) or settings.quantizer_learning_rate
        decay = getattr(module.quantizer, "weight_decay", None)
        key = (settings.learning_rate * rate, settings.quantizer_weight_decay if decay is None else decay)
        parameters = [p for p in module.parameters() if p not in own]
        own.update(parameters)
        found.setdefault(key, []).extend(parameters)
    if settings.norm_weight_decay is not None:
        affine = [p for norm in batch_norms(model).values() for p in norm.parameters()]
        own.update(affine)
        found.setdefault((settings.learning_rate, settings.norm_weight_decay), []).extend(affine)
    rest = [p for p in model.parameters() if p not in own and p.requires_grad]
    groups = [{"params": rest, "lr": settings.learning_rate, "weight_decay": settings.weight_decay}]
    return groups + [{"params": ps, "lr": lr, "weight_decay": wd} for (lr, wd), ps in found.items() if ps]


def learning_rate_factor(
    step: int, *, steps: int, warmup: float, schedule: str, first: float = 0.0, last: float = 0.0
) -> float:
    """What the learning rate is multiplied with: linear over the warm-up, then by the schedule.

    With t from 0 to 1 over the steps behind the warm-up: `cosine` last + (1 - last) (1 + cos(π t)) / 2, `poly`
    last + (1 - last) (1 - t)², `constant` 1. `first` and `last` are parts of the learning rate.
    """
    if step < warmup:
        return first + (1.0 - first) * (step + 1) / (warmup + 1)
    t = min((step - warmup) / max(steps - warmup, 1), 1.0)
    shape = {"constant": 1.0, "cosine": 0.5 * (1.0 + math.cos(math.pi * t)), "poly": (1.0 - t) ** 2}[schedule]
    return shape if schedule == "constant" else last + (1.0 - last) * shape
