"""Post-training quantization: capture, fold, place, insert, calibrate. Minutes, and no training."""

from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor, fx, nn

from isobit.algorithms.calibration import Observation, calibrate, finish
from isobit.core.batches import Data
from isobit.core.progress import Progress, silent
from isobit.graph.capture import capture
from isobit.graph.insert import insert
from isobit.graph.passes import FoldBatchNorm, PassReport, UnifyGlobalPool
from isobit.graph.placement import place
from isobit.graph.rules import Rules
from isobit.observers import MinMax, ObserverSettings
from isobit.quantizers import Fixed, QuantizerSettings
from isobit.targets import Profile


@final
@dataclass(frozen=True, kw_only=True)
class Preparing:
    """Settings of a preparation: which quantizers, and the exceptions by layer."""

    weight: QuantizerSettings = Fixed()
    activation: QuantizerSettings = Fixed()
    rules: Rules = field(default_factory=Rules)


def prepare(
    net: nn.Module, example: tuple[Tensor, ...] | Tensor, profile: Profile, settings: Preparing | None = None
) -> fx.GraphModule:
    """A captured copy of the network with quantizers where the target has them, not calibrated yet."""
    settings = settings or Preparing()
    model = net if isinstance(net, fx.GraphModule) and "capture" in net.meta else capture(net, example)
    reports: dict[str, PassReport] = {"unify_global_pool": UnifyGlobalPool().apply(model)}
    if profile.fold_bn:
        reports["fold_bn"] = FoldBatchNorm().apply(model)
    plan = place(model, profile, settings.rules)
    insert(model, plan, profile=profile, rules=settings.rules, weight=settings.weight, activation=settings.activation)
    model.meta["passes"] = reports
    return model


@final
@dataclass(frozen=True, kw_only=True)
class PostTraining:
    """Settings of post-training quantization: the observers that set ranges, and the preparation's."""

    weight_observer: ObserverSettings = field(default_factory=MinMax)
    activation_observer: ObserverSettings = field(default_factory=MinMax)
    observers: dict[str, ObserverSettings] = field(default_factory=dict)
    preparing: Preparing = field(default_factory=Preparing)
    seed: int = 0

    def apply(
        self,
        net: nn.Module,
        example: tuple[Tensor, ...] | Tensor,
        data: Data,
        profile: Profile,
        *,
        progress: Progress = silent,
    ) -> fx.GraphModule:
        """Quantize a float network for a target from calibration data; see `isobit.quantize`."""
        observation = Observation(
            weight=self.weight_observer, activation=self.activation_observer, by_name=self.observers
        )
        with torch.random.fork_rng(devices=[]):  # the caller's random state stays as it was
            torch.manual_seed(self.seed)
            model = prepare(net, example, profile, self.preparing)
            model.meta["samples"] = calibrate(model, data, observation, progress=progress)
        finish(model)
        return model
