"""Slots: the places in a prepared network where a quantizer sits, and layers whose weight passes one."""

from typing import Literal, Protocol, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isobit.core.errors import CalibrationError, UnsupportedError
from isobit.core.qparams import DynamicRange, QParams

Mode = Literal["float", "observe", "quantize"]

MARK = "isobit_recipe"
"""The attribute of a float layer that is to be quantized when its network is calibrated (`isobit.quant_modules`)."""


class Observes(Protocol):
    """What a slot asks of an observer."""

    def see(self, x: Tensor) -> None:
        """Take a batch into account."""

    def qparams(self) -> QParams:
        """The parameters for all that was seen."""


@final
class Slot(nn.Module):
    """Holds one quantizer: passes x through in `float` mode, also shows it to the observer in `observe` mode.

    A `stochastic` one lets its quantizer round at random in training, by torch's generator: E[x̂] = x inside the range.
    In eval mode it rounds to nearest, as what is deployed does. `original` is the weight before an algorithm put
    another one in its place, that `float` mode shows; it is not part of the state.
    """

    def __init__(self, quantizer: nn.Module, *, name: str, stochastic: bool = False) -> None:
        super().__init__()
        self.quantizer, self.stochastic = quantizer, stochastic
        self.original: Tensor | None = None
        self.point = name
        self.mode: Mode = "float"
        self.observer: Observes | None = None
        self.register_load_state_dict_post_hook(_quantize_if_calibrated)  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: any; the result has the shape of x."""
        if self.mode == "quantize":
            return _in_full_precision(self.quantizer, x, draws=self.stochastic and self.training)
        if self.mode == "observe" and self.observer is not None:
            try:
                self.observer.see(x.detach())
            except CalibrationError as error:
                raise CalibrationError(f"at {self.point}: {error}") from error
        return x if self.original is None or self.mode != "float" else self.original

    def calibrate(self) -> None:
        """Give the quantizer what the observer found, forget the observer and start to quantize."""
        if self.observer is not None:
            try:
                self.quantizer.calibrate(self.observer.qparams())  # type: ignore[operator]
            except CalibrationError as error:
                raise CalibrationError(f"at {self.point}: {error}") from error
        self.observer = None
        self.mode = "quantize"

    def grid(self) -> QParams | DynamicRange:
        """What the quantizer declares."""
        return self.quantizer.grid()  # type: ignore[no-any-return, operator]

    def extra_repr(self) -> str:
        """The name and the mode."""
        return f"{self.point!r}, {self.mode}" + (", stochastic" if self.stochastic else "")


def _quantize_if_calibrated(slot: nn.Module, _: object) -> None:
    """After a state was loaded: that of a calibrated model holds ranges, which are there to be used."""
    assert isinstance(slot, Slot)
    try:
        slot.grid()
    except CalibrationError:
        return
    slot.mode = "quantize"


def _in_full_precision(quantizer: nn.Module, x: Tensor, *, draws: bool) -> Tensor:
    """What the quantizer makes of x, computed in float32 at least: 8 bits of mantissa do not hold a step of 8 bits."""

    def quantize(x: Tensor) -> Tensor:
        return quantizer(x, noise=torch.rand_like(x)) if draws else quantizer(x)  # type: ignore[no-any-return]

    kind = x.device.type
    mixed = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    if not mixed and x.dtype not in (torch.bfloat16, torch.float16):
        return quantize(x)
    with torch.autocast(kind, enabled=False):
        return quantize(x.float() if x.dtype.itemsize < 4 else x).to(x.dtype)


class _Conv(nn.modules.conv._ConvNd):
    weight_slot: Slot

    def forward(self, x: Tensor) -> Tensor:
        """As the float layer, with a quantized weight."""
        return self._conv_forward(x, self.weight_slot(self.weight), self.bias)


@final
class QuantizedConv1d(_Conv, nn.Conv1d):
    """nn.Conv1d whose weight passes `weight_slot`."""


@final
class QuantizedConv2d(_Conv, nn.Conv2d):
    """nn.Conv2d whose weight passes `weight_slot`."""


@final
class QuantizedConv3d(_Conv, nn.Conv3d):
    """nn.Conv3d whose weight passes `weight_slot`."""


@final
class QuantizedConvTranspose2d(nn.ConvTranspose2d):
    """nn.ConvTranspose2d whose weight passes `weight_slot`."""

    weight_slot: Slot

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """As the float layer, with a quantized weight."""
        if output_size is not None:
            raise UnsupportedError("a quantized ConvTranspose2d takes no output_size: set output_padding instead")
        return F.conv_transpose2d(
            x,
            self.weight_slot(self.weight),
            self.bias,
            self.stride,
            self.padding,  # type: ignore[arg-type]
            self.output_padding,
            self.groups,
            self.dilation,
        )


@final
class QuantizedLinear(nn.Linear):
    """nn.Linear whose weight passes `weight_slot`."""

    weight_slot: Slot

    def forward(self, x: Tensor) -> Tensor:
        """As the float layer, with a quantized weight."""
        return F.linear(x, self.weight_slot(self.weight), self.bias)


QUANTIZED_LAYERS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv1d: QuantizedConv1d,
    nn.Conv2d: QuantizedConv2d,
    nn.Conv3d: QuantizedConv3d,
    nn.ConvTranspose2d: QuantizedConvTranspose2d,
    nn.Linear: QuantizedLinear,
}


def give_weight_slot(layer: nn.Module, slot: Slot) -> None:
    """Turn a layer into its quantized twin, in place: same object, same keys, same hooks, plus `weight_slot`."""
    twin = next((q for f, q in QUANTIZED_LAYERS.items() if isinstance(layer, f)), None)
    if twin is None:
        known = ", ".join(sorted(c.__name__ for c in QUANTIZED_LAYERS))
        raise UnsupportedError(f"{slot.point}: cannot quantize a {type(layer).__name__}; layers with weights: {known}")
    layer.__class__ = twin
    layer.add_module("weight_slot", slot)


def weight_slot(layer: nn.Module) -> Slot | None:
    """The slot of a quantized layer, None for a float one."""
    found = layer._modules.get("weight_slot")
    return found if isinstance(found, Slot) else None
