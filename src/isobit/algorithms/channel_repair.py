"""Repairs of the float network before it is quantized: its function stays, what is hard to quantize moves elsewhere."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, fx, nn

from isobit.core.batches import Data, batches
from isobit.core.errors import CalibrationError, SettingError
from isobit.core.scheme import Scheme
from isobit.graph.passes import AbsorbBias, EqualizeLayers, PassReport, SmoothQuant, SplitChannels
from isobit.graph.passes.smooth import MAXIMA


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class ChannelRepair:
    """Which repairs, in this order: equal ranges, absorbed biases, a share of channels split, SmoothQuant's α."""

    equalize: bool = False
    absorb_bias: bool = False
    split_channels: float = 0.0
    smooth: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.split_channels <= 1:
            raise SettingError(f"split_channels is a share of channels, from 0 to 1, got {self.split_channels}")
        if self.smooth is not None:
            SmoothQuant(alpha=self.smooth)  # says what cannot be


def repair(
    model: fx.GraphModule, settings: ChannelRepair, *, weight: Scheme, data: Data | None
) -> dict[str, PassReport]:
    """Repair a captured model in place; what each pass did. `weight` is the format its weights are meant for.

    Raises SettingError where SmoothQuant has no data to look at, CalibrationError for unfit data.
    """
    reports = {}
    if settings.equalize:
        reports["equalize"] = EqualizeLayers().apply(model)
    if settings.absorb_bias:
        reports["absorb_bias"] = AbsorbBias().apply(model)
    if settings.split_channels:
        reports["split_channels"] = SplitChannels(share=settings.split_channels, scheme=weight).apply(model)
    if settings.smooth is not None:
        if data is None:
            raise SettingError("smooth needs calibration data: use isobit.quantize, or leave it out to train")
        model.meta[MAXIMA] = input_maxima(model, data)
        reports["smooth"] = SmoothQuant(alpha=settings.smooth).apply(model)
    return reports


def notes_of(reports: Mapping[str, PassReport]) -> tuple[str, ...]:
    """A line for each repair that was asked for and changed nothing."""
    asked = ("absorb_bias", "split_channels", "smooth")
    idle = {name: reports[name] for name in asked if name in reports and not reports[name].changed}
    return tuple(
        f"{name} changed nothing: {'; '.join(r.left[:3]) or 'no channel needs it'}{' …' if len(r.left) > 3 else ''}"
        for name, r in idle.items()
    )


@torch.inference_mode()
def input_maxima(model: fx.GraphModule, data: Data) -> dict[str, Tensor]:
    """The largest |x| of each input channel of the linear layers that are called once, over all data: (features,)."""
    model.eval()
    calls = Counter(str(n.target) for n in model.graph.nodes if n.op == "call_module")
    layers = {name: model.get_submodule(name) for name, count in calls.items() if count == 1}
    found: dict[str, Tensor] = {}

    def see(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            largest = inputs[0].abs().flatten(0, -2).amax(0)
            found[name] = torch.maximum(found[name], largest) if name in found else largest

        return hook

    hooks = [m.register_forward_pre_hook(see(name)) for name, m in layers.items() if isinstance(m, nn.Linear)]
    try:
        for index, batch in enumerate(batches(data)):
            try:
                model(*batch.inputs)
            except (RuntimeError, TypeError) as error:
                raise CalibrationError(f"the network does not take calibration batch {index}: {error}") from error
    finally:
        for hook in hooks:
            hook.remove()
    with torch.inference_mode(False):
        return {name: largest.clone() for name, largest in found.items()}
