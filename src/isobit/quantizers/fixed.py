"""Fixed: a calibrated, static range (Jacob et al. 2018, arXiv:1712.05877, section 3)."""

from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from isobit.core.fake_quantize import fake_quantize
from isobit.core.qparams import QParams
from isobit.core.rounding import HalfEven, Stochastic, uniform_noise
from isobit.core.scheme import Scheme
from isobit.quantizers.protocol import Role, loads_into_fresh, require_calibrated


@dataclass(frozen=True, kw_only=True, slots=True)
class Fixed:
    """Settings of the static quantizer. It has none: the scheme and the observer say everything."""

    observer: ClassVar[str] = "min_max"

    def build(self, scheme: Scheme, *, role: Role = "activation") -> "FixedQuantizer":
        """A quantizer whose scale and zero point stay as calibrated."""
        del role
        return FixedQuantizer(scheme)


@final
class FixedQuantizer(nn.Module):
    """x̂ = s (clip(round(x / s) + z) - z) with s and z from calibration; the gradient to x is straight-through.

    With stochastic rounding, draws are made in training alone and differ from step to step; inference rounds to
    nearest.
    """

    scale: Tensor
    zero_point: Tensor
    signed: Tensor
    step: Tensor

    def __init__(self, scheme: Scheme) -> None:
        super().__init__()
        self.scheme = scheme
        self.register_buffer("scale", torch.empty(0))
        self.register_buffer("zero_point", torch.empty(0, dtype=torch.int32))
        self.register_buffer("signed", torch.tensor(scheme.signed))
        self.register_buffer(
            "step", torch.zeros((), dtype=torch.int64), persistent=isinstance(scheme.rounding, Stochastic)
        )
        loads_into_fresh(self)

    def calibrate(self, qparams: QParams) -> None:
        """Take scale, zero point and the settled sign."""
        self.scheme = replace(qparams.scheme, rounding=self.scheme.rounding)
        self.scale = qparams.scale.detach().clone()
        self.zero_point = qparams.zero_point.detach().clone()
        self.signed = torch.tensor(qparams.scheme.signed, device=qparams.scale.device)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: x as calibrated, with any batch size; raises CalibrationError before calibration."""
        require_calibrated(self.scale)
        noise = None
        if isinstance(self.scheme.rounding, Stochastic) and self.training:
            noise = uniform_noise(x, seed=self.scheme.rounding.seed, step=self.step)
            self.step += 1
        return fake_quantize(x, self.scale, self.zero_point, self._scheme_now(), noise=noise)

    def grid(self) -> QParams:
        """Scale, zero point and scheme as calibrated."""
        require_calibrated(self.scale)
        return QParams(self.scale.detach(), self.zero_point, _at_inference(self.scheme))

    def _scheme_now(self) -> Scheme:
        return self.scheme if self.training else _at_inference(self.scheme)

    def extra_repr(self) -> str:
        """The scheme in words."""
        return str(self.scheme)


def _at_inference(scheme: Scheme) -> Scheme:
    """Inference rounds to nearest: only training draws at random."""
    return replace(scheme, rounding=HalfEven()) if isinstance(scheme.rounding, Stochastic) else scheme
