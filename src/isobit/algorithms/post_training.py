"""Post-training quantization: capture, fold, place, insert, calibrate. Minutes, and no training."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import final

import torch
from torch import Tensor, fx, nn

from isobit.algorithms.bias_correction import BiasCorrection
from isobit.algorithms.calibration import Observation, calibrate, finish
from isobit.algorithms.channel_repair import ChannelRepair, notes_of, repair
from isobit.algorithms.exact_scales import check_scales, scales, settle_scales
from isobit.algorithms.lapq import Lapq
from isobit.algorithms.reconstruction import Reconstructs
from isobit.algorithms.saturation import check_settled, note_filled, settle, widen_steps
from isobit.algorithms.without_data import Statistics, take_statistics
from isobit.analysis.calibration_data import surveyed
from isobit.core.batches import Data
from isobit.core.errors import SettingError, UnsupportedError
from isobit.core.progress import Progress, silent
from isobit.core.records import CorrectionRecord
from isobit.graph.capture import capture
from isobit.graph.folding import STRATEGIES, Strategy
from isobit.graph.insert import insert
from isobit.graph.passes import (
    FoldBatchNorm,
    FoldBatchNormInTraining,
    KeepRounding,
    PassReport,
    SplitAttention,
    UnifyGlobalPool,
)
from isobit.graph.placement import place
from isobit.graph.rules import Rules
from isobit.observers import MinMax
from isobit.quantizers import Fixed, QuantizerSettings
from isobit.targets import Profile


@final
@dataclass(frozen=True, kw_only=True)
class Preparing:
    """Settings of a preparation: which quantizers, the exceptions by layer, and what becomes of batch norm.

    A quantizer that is None leaves all weights, or all activations, in float.
    `bn_fold` is a strategy of `isobit.graph.folding`: -1 keeps batch norm, 0 merges it now, 1 to 4 train it together
    with its layer; None is what the target does. `bn_synchronized` says whether 2 to 4 share statistics between
    processes. With `stochastic_rounding` quantizers round at random in training. `repair` moves what is hard to
    quantize between neighbouring layers first, as far as batch norm is merged (`bn_fold` 0). With `keep_rounding` a
    convolution in front of an add is rounded to its own grid everywhere, unless the target says that it never is.
    """

    weight: QuantizerSettings | None = Fixed()
    activation: QuantizerSettings | None = Fixed()
    rules: Rules = field(default_factory=Rules)
    bn_fold: Strategy | None = None
    bn_synchronized: bool = True
    stochastic_rounding: bool = False
    repair: ChannelRepair = ChannelRepair()
    keep_rounding: bool = False

    def __post_init__(self) -> None:
        if self.bn_fold is not None and (isinstance(self.bn_fold, bool) or self.bn_fold not in STRATEGIES):
            raise SettingError(f"bn_fold has to be one of {', '.join(map(str, STRATEGIES))}, got {self.bn_fold!r}")


def prepare(
    net: nn.Module,
    example: tuple[Tensor, ...] | Tensor,
    profile: Profile,
    settings: Preparing | None = None,
    *,
    data: Data | None = None,
) -> fx.GraphModule:
    """A captured copy of the network with quantizers where the target has them, not calibrated yet.

    `data` is for a repair that looks at activations.
    """
    settings = settings or Preparing()
    model = net if isinstance(net, fx.GraphModule) and "capture" in net.meta else capture(net, example)
    reports: dict[str, PassReport] = {"unify_global_pool": UnifyGlobalPool().apply(model)}
    if profile.placement.attention_products:
        reports["split_attention"] = SplitAttention().apply(model)
    fold = settings.bn_fold if settings.bn_fold is not None else 0 if profile.fold_bn else -1
    if fold == 0:
        reports["fold_bn"] = FoldBatchNorm().apply(model)
    reports |= repair(model, settings.repair, weight=profile.weight_scheme(profile.weight.bits), data=data)
    if settings.keep_rounding and not profile.placement.conv_feeds_add:
        reports["keep_rounding"] = KeepRounding().apply(model)
    plan = place(model, profile, settings.rules)
    notes = insert(
        model,
        plan,
        profile=profile,
        rules=settings.rules,
        weight=settings.weight,
        activation=settings.activation,
        stochastic_rounding=settings.stochastic_rounding,
    )
    model.meta["notes"] = (*model.meta.get("notes", ()), *notes, *notes_of(reports))
    if fold > 0:
        training = FoldBatchNormInTraining(strategy=fold, synchronized=settings.bn_synchronized)
        reports["fold_bn"] = training.apply(model)
    model.meta["passes"] = reports
    return model


@final
@dataclass(frozen=True, kw_only=True)
class PostTraining:
    """Settings of post-training quantization: the observers that set ranges, the preparation's, and what is learned.

    With `joint_ranges` the steps of all layers are searched together first. With `bias_correction` layers keep their
    mean output; with `reconstruction` roundings are learned from the calibration data, segment by segment. With
    `avoid_saturation` channels whose pairs of products can leave a register get larger steps, as those whose sums can
    do in any case. With `exact` no result lies near the middle of two levels, where engines round differently. With
    `without_data` the data are synthetic: what batch norms tell of ranges, where these are min-max ones, and of means
    goes before what is seen.
    """

    observation: Observation = field(default_factory=Observation)
    preparing: Preparing = field(default_factory=Preparing)
    joint_ranges: Lapq | None = None
    bias_correction: BiasCorrection | None = None
    reconstruction: Reconstructs | None = None
    reconstruction_asked: bool = True
    avoid_saturation: bool = False
    exact: bool = False
    without_data: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        by_block = self.reconstruction is not None and self.reconstruction.unit == "block"
        if by_block and self.bias_correction is not None:
            raise SettingError(
                "bias_correction moves the means inside of blocks whose layers have learned to make up for each other: "
                "use one of the two, or a reconstruction layer by layer, `adaround` or `gptq`"
            )

    def apply(
        self,
        net: nn.Module,
        example: tuple[Tensor, ...] | Tensor,
        data: Data,
        profile: Profile,
        *,
        checkpoint: Path | None = None,
        progress: Progress = silent,
    ) -> fx.GraphModule:
        """Quantize a float network for a target from calibration data; see `isobit.quantize`."""
        smooths = self.preparing.repair.smooth is not None
        if (
            smooths
            or self.exact
            or (self.joint_ranges, self.bias_correction, self.reconstruction) != (None, None, None)
        ):
            data = list(data)  # it is read more than once
        with torch.random.fork_rng(devices=[]):  # the caller's random state stays as it was
            torch.manual_seed(self.seed)
            statistics = Statistics.of(net, example) if self.without_data else None
            model = prepare(statistics.model if statistics else net, example, profile, self.preparing, data=data)
            with surveyed(model) as survey:
                model.meta["samples"] = calibrate(model, data, self.observation, progress=progress)
            model.meta["calibration_data"] = () if self.without_data or profile.ranges == "cast" else survey.findings()
            if self.joint_ranges is not None:
                model.meta["joint_ranges"] = self.joint_ranges.apply(model, data, progress=progress)
            widened = widen_steps(model, pairs=self.avoid_saturation)
            before = scales(model) if self.exact else {}
            if self.exact:
                settle_scales(model, data)
            if self.reconstruction is not None:
                self._reconstruct(model, data, checkpoint, progress)
            if self.avoid_saturation:
                model.meta["saturation"] = settle(model, widened)
            else:
                note_filled(model, widened)
            corrected: tuple[CorrectionRecord, ...] = ()
            if statistics is not None:
                ranges, biases = self.observation.activation == MinMax(), self.bias_correction is not None
                corrected = take_statistics(model, statistics, ranges=ranges, biases=biases)
                model.meta["bias_correction"] = corrected
            if self.bias_correction is not None and not corrected:
                model.meta["bias_correction"] = self.bias_correction.apply(model, data, progress=progress)
        finish(model)
        if self.exact:
            model.meta["exact"] = check_scales(model, before)
        if self.avoid_saturation:
            check_settled(model)
        return model

    def _reconstruct(self, model: fx.GraphModule, data: Data, checkpoint: Path | None, progress: Progress) -> None:
        """Find the roundings; where nobody asked for it and the network cannot, a note says why."""
        assert self.reconstruction is not None
        try:
            model.meta["reconstruction"] = self.reconstruction.apply(
                model, data, seed=self.seed, checkpoint=checkpoint, progress=progress
            )
        except UnsupportedError as error:
            if self.reconstruction_asked:
                raise
            model.meta["notes"] = (*model.meta["notes"], f"weights are rounded to nearest: {error}")
