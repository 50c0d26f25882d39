"""Fixed: a calibrated, static range (Jacob et al. 2018, arXiv:1712.05877, section 3)."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from isobit.core.errors import UnsupportedError
from isobit.core.fake_quantize import fake_quantize
from isobit.core.qparams import QParams
from isobit.core.rounding import Stochastic
from isobit.core.scheme import Scheme
from isobit.quantizers.protocol import Role, loads_into_fresh, require_calibrated


@dataclass(frozen=True, kw_only=True, slots=True)
class Fixed:
    """Settings of the static quantizer. It has none: the scheme and the observer say everything."""

    observer: ClassVar[str] = "min_max"
    stochastic_rounding: ClassVar[bool] = True

    def build(self, scheme: Scheme, *, role: Role = "activation") -> "FixedQuantizer":
        """A quantizer whose scale and zero point stay as calibrated; raises UnsupportedError for a random rounding."""
        del role
        if isinstance(scheme.rounding, Stochastic):
            raise UnsupportedError("what is deployed rounds to nearest: `stochastic_rounding` draws in training alone")
        return FixedQuantizer(scheme)


@final
class FixedQuantizer(nn.Module):
    """x̂ = s (clip(round(x / s) + z) - z) with s and z from calibration; the gradient to x is straight-through."""

    scale: Tensor
    zero_point: Tensor
    signed: Tensor

    def __init__(self, scheme: Scheme) -> None:
        super().__init__()
        self.scheme = scheme
        self.register_buffer("scale", torch.empty(0))
        self.register_buffer("zero_point", torch.empty(0, dtype=torch.int32))
        self.register_buffer("signed", torch.tensor(scheme.signed))
        loads_into_fresh(self)

    def calibrate(self, qparams: QParams) -> None:
        """Take scale, zero point and the settled sign."""
        self.scheme = qparams.scheme
        self.scale = qparams.scale.detach().clone()
        self.zero_point = qparams.zero_point.detach().clone()
        self.signed = torch.tensor(qparams.scheme.signed, device=qparams.scale.device)

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """Shapes: x as calibrated, with any batch size; raises CalibrationError before calibration."""
        require_calibrated(self.scale)
        return fake_quantize(x, self.scale, self.zero_point, self.scheme, noise=noise)

    def grid(self) -> QParams:
        """Scale, zero point and scheme as calibrated."""
        require_calibrated(self.scale)
        return QParams(self.scale.detach(), self.zero_point, self.scheme)

    def extra_repr(self) -> str:
        """The scheme in words."""
        return str(self.scheme)
