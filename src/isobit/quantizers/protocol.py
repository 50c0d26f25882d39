"""What a quantizer is: frozen settings that build a module, and a module that declares its grid."""

from typing import ClassVar, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from isobit.core.errors import CalibrationError
from isobit.core.qparams import DynamicRange, QParams
from isobit.core.scheme import Scheme

Role = Literal["weight", "activation"]


@runtime_checkable
class Quantizer(Protocol):
    """A module that turns x into x̂, a tensor of the same shape on the grid that it declares."""

    scheme: Scheme

    def calibrate(self, qparams: QParams) -> None:
        """Take the initial scale and zero point from an observer."""

    def forward(self, x: Tensor) -> Tensor:
        """Quantize and dequantize; differentiable."""

    def grid(self) -> QParams | DynamicRange:
        """The levels, scale and zero point that the exporter writes."""


@runtime_checkable
class QuantizerSettings(Protocol):
    """Frozen settings of a quantizer. `observer` names the observer that gives its initial parameters."""

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
