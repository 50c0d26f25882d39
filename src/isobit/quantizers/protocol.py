"""What a quantizer is: frozen settings that build a module, and a module that declares its grid."""

from dataclasses import replace
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from isobit.core.errors import CalibrationError
from isobit.core.qparams import SMALLEST_SCALE, DynamicRange, QParams
from isobit.core.rounding import Stochastic, round_to_integer
from isobit.core.scheme import Scheme

Role = Literal["weight", "activation"]


@runtime_checkable
class Quantizer(Protocol):
    """A module that turns x into x̂, a tensor of the same shape on the grid that it declares."""

    scheme: Scheme

    def calibrate(self, qparams: QParams) -> None:
        """Take the initial scale and zero point from an observer."""

    def forward(self, x: Tensor) -> Tensor:
        """Quantize and dequantize; differentiable.

        Where the settings' `stochastic_rounding` is true, it also takes `noise`, uniform in [0, 1) and of the shape of
        x, and then draws one of the two levels about each value, so that the value is the mean of what is drawn.
        """

    def grid(self) -> QParams | DynamicRange:
        """The levels, scale and zero point that the exporter writes."""


@runtime_checkable
class QuantizerSettings(Protocol):
    """Frozen settings of a quantizer. `observer` names the observer that gives its initial parameters.

    A class variable `weight_observer` names another one for weights. `stochastic_rounding` says that the module's
    forward takes `noise` (see `Quantizer`), which a slot draws in training. A module may have more than a `Quantizer`:
    `start(weight)`, called after `calibrate` with the float weight; `advance(progress)`, called by the training loop
    with the part of the training that is done, from 0 to 1; `penalty()`, added to the loss; `learning_rate_scale` and
    `weight_decay`, for its own parameters; `differs_in_eval`, where training computes with other weights than are
    deployed; `update_delta(gradient, diagonal)`, told now and then the gradient of the loss to its output and the
    diagonal of the Hessian there.
    """

    observer: ClassVar[str]

    def build(self, scheme: Scheme, *, role: Role = "activation") -> nn.Module:
        """A fresh module; raises UnsupportedError where it cannot express the scheme."""


def require_calibrated(scale: Tensor) -> None:
    """Raise CalibrationError where a quantizer runs before it has a scale. A check of the shape alone: it traces."""
    if scale.numel() == 0:
        raise CalibrationError("a quantizer ran before it was calibrated: call isobit.quantize, or calibrate the model")


def resize_to_state(module: nn.Module, state: dict[str, Tensor], prefix: str) -> None:
    """Give the module's own tensors the shapes of a saved state, so that a fresh module loads a calibrated one."""
    for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
        saved = state.get(prefix + name)
        if saved is not None and saved.shape != tensor.shape:
            tensor.data = torch.empty_like(saved, dtype=tensor.dtype, device=tensor.device)


def loads_into_fresh(module: nn.Module) -> None:
    """Let `module`, fresh and not calibrated, load the state of a calibrated one: its shapes, and its settled sign.

    The sign is the buffer `signed`, where there is one; a method `settle(signed=…)` takes it, else `settled` does.
    """
    module.register_load_state_dict_pre_hook(_before_load)  # type: ignore[no-untyped-call]


def _before_load(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    resize_to_state(module, state, prefix)
    signed = state.get(prefix + "signed")
    own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    if signed is None or not all(state[prefix + name].numel() for name, _ in own if prefix + name in state):
        return
    settle = getattr(module, "settle", None)
    if callable(settle):
        settle(signed=bool(signed))
    else:
        module.scheme = settled(module.scheme, signed=bool(signed))  # type: ignore[arg-type, assignment]


def settled(scheme: Scheme, *, signed: bool) -> Scheme:
    """The scheme once calibration has seen the sign; an unsigned one has no level to leave out."""
    return replace(scheme, adapt_sign=False, signed=signed, narrow=scheme.narrow and signed)


def half_of_range(qparams: QParams) -> Tensor:
    """Half of the observed range, of the shape of the scale: mean|x| with the observer `mean_abs` at 1 and 2 bits."""
    return (qparams.range()[1] / 2).detach().clamp(min=SMALLEST_SCALE)


def rounded(u: Tensor, noise: Tensor | None, *, mid_rise: bool = False) -> Tensor:
    """The integer nearest to u, or the nearest k + 1/2; with noise, uniform in [0, 1), drawn so that its mean is u."""
    if noise is None:
        return u.floor() + 0.5 if mid_rise else u.round()
    shift = 0.5 if mid_rise else 0.0
    return round_to_integer(u - shift, Stochastic(), noise) + shift


def straight_through(value: Tensor, source: Tensor) -> Tensor:
    """`value` to the bit in the forward pass, the gradient to `source` in the backward pass."""
    return value.detach() + (source - source.detach())


def scale_gradient(parameter: Tensor, g: float) -> Tensor:
    """`parameter` to the bit in the forward pass, g times the gradient in the backward pass."""
    return parameter.detach() + (parameter - parameter.detach()) * g


def power_of_two(scale: Tensor) -> Tensor:
    """2^round(log2 s), straight-through to s."""
    return straight_through(torch.exp2(scale.detach().log2().round()), scale)
