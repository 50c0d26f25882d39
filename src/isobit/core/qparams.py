"""Quantization parameters: from a range to a scale and a zero point, and from a tensor to its integers."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from isobit.core.errors import CalibrationError, SettingError
from isobit.core.fake_quantize import fake_quantize, nearest_level
from isobit.core.float16 import cast
from isobit.core.geometric import geometric_scale, indices, values
from isobit.core.granularity import expand
from isobit.core.grid import Codebook, Float16, Geometric, MidRise, Uniform
from isobit.core.rounding import round_to_integer
from isobit.core.scheme import PowerOfTwo, Scheme

SMALLEST_SCALE = 2.0**-100
"""Scales below this would underflow when two of them are multiplied in float32."""


@dataclass(frozen=True, eq=False)
class QParams:
    """What a quantizer declares: its scale (float32), zero point (int32) and scheme.

    The shapes of `scale` and `zero_point` are those of `core.granularity.scale_shape`. A scheme with a codebook
    comes with its values, ascending and at most 2^bits of them, which the scale multiplies.
    """

    scale: Tensor
    zero_point: Tensor
    scheme: Scheme
    codebook: Tensor | None = None

    def __post_init__(self) -> None:
        if self.scheme.adapt_sign:
            raise SettingError("a scheme with adapt_sign has to be resolved before it gets parameters")
        if not bool(torch.isfinite(self.scale).all()) or not bool((self.scale > 0).all()):
            raise CalibrationError(f"a scale has to be positive and finite, got {self.scale.flatten()[:8].tolist()}")
        if isinstance(self.scheme.grid, Codebook) != (self.codebook is not None):
            raise SettingError("a codebook belongs to a scheme with the grid Codebook, and to no other")
        if self.codebook is not None:
            _check_codebook(self.codebook, self.scheme.bits)

    def fake_quantize(self, x: Tensor) -> Tensor:
        """Quantize and dequantize `x`."""
        if self.codebook is not None:
            return self.dequantize(self.quantize(x)).to(x.dtype)
        return fake_quantize(x, self.scale, self.zero_point, self.scheme)

    def quantize(self, x: Tensor) -> Tensor:
        """The integers of `x`, int32, of its shape: clip(round(x / scale) + zero_point, quant_min, quant_max).

        Those of a float16 are its bits.
        """
        if isinstance(self.scheme.grid, Float16):
            return cast(x, self.scheme.grid).half().view(torch.int16).to(torch.int32)
        if isinstance(self.scheme.grid, Geometric):
            return indices(x, self.scale, self.scheme.grid, self.scheme.bits).to(torch.int32)
        scale = expand(self.scale.to(x.dtype), x.dim(), self.scheme.granularity)
        if self.codebook is not None:
            centres = self.codebook.double()  # the middle of two neighbours in float32 is no float32
            middles = (centres[1:] + centres[:-1]) / 2
            return torch.searchsorted(middles, (x / scale).double().contiguous()).to(torch.int32)
        if not isinstance(self.scheme.grid, Uniform):
            return nearest_level(x / scale, self.scheme.levels, ties_up=isinstance(self.scheme.grid, MidRise)).to(
                torch.int32
            )
        zero_point = expand(self.zero_point, x.dim(), self.scheme.granularity)
        q = round_to_integer(x / scale, self.scheme.rounding) + zero_point
        return q.clamp(self.scheme.quant_min, self.scheme.quant_max).to(torch.int32)

    def dequantize(self, q: Tensor) -> Tensor:
        """(q - zero_point) · scale, float32."""
        if isinstance(self.scheme.grid, Float16):
            return q.to(torch.int16).view(torch.float16).float()
        if isinstance(self.scheme.grid, Geometric):
            return values(self.scale, self.scheme.grid, self.scheme.bits)[q.long()]
        scale = expand(self.scale, q.dim(), self.scheme.granularity)
        if self.codebook is not None:
            return self.codebook[q.long()] * scale
        return (q - expand(self.zero_point, q.dim(), self.scheme.granularity)).to(scale.dtype) * scale

    def range(self) -> tuple[Tensor, Tensor]:
        """The lowest and highest value that does not clip, of the shape of the scale."""
        if self.codebook is not None:
            return self.codebook[0] * self.scale, self.codebook[-1] * self.scale
        if isinstance(self.scheme.grid, Geometric):
            ends = values(self.scale, self.scheme.grid, self.scheme.bits)
            return ends[0], ends[-1]
        z = self.zero_point.to(self.scale.dtype)
        return (self.scheme.quant_min - z) * self.scale, (self.scheme.quant_max - z) * self.scale


def _check_codebook(values: Tensor, bits: int) -> None:
    if values.dim() != 1 or not 1 <= values.numel() <= 1 << bits:
        raise SettingError(f"a codebook of {bits} bits has 1 to {1 << bits} values in a row, not {tuple(values.shape)}")
    if not bool(torch.isfinite(values).all()) or bool((values[1:] < values[:-1]).any()):
        raise CalibrationError(f"a codebook has to be finite and ascending, got {values[:8].tolist()}")


@dataclass(frozen=True, slots=True)
class DynamicRange:
    """What a dynamic quantizer declares: its scheme; scale and zero point are computed from each input."""

    scheme: Scheme


def qparams_of_range(low: Tensor, high: Tensor, scheme: Scheme) -> QParams:
    """The parameters whose range covers [low, high] widened to hold 0. Shapes: low, high as the scale.

    Symmetric: s = max(|low|, |high|) / quant_max, z = 0; asymmetric: s = (high - low) / (quant_max - quant_min),
    z = round(quant_min - low / s), clipped to the levels. A power-of-two scale is 2^round(log2 s). A range of
    nothing but 0 gets the scale 1. A codebook starts with values an equal distance apart, from the lowest low / s
    to the highest high / s, where s = max(|low|, |high|). A float16 has the scale 1 whatever the range. The
    scale of a geometric grid is its smallest positive value.

    >>> p = qparams_of_range(torch.tensor(-1.0), torch.tensor(2.0), Scheme(signed=False, symmetric=False))
    >>> round(p.scale.item() * 255, 5), p.zero_point.item()
    (3.0, 85)
    """
    if not (bool(torch.isfinite(low).all()) and bool(torch.isfinite(high).all())):
        raise CalibrationError("a range has to be finite")
    if bool((low > high).any()):
        raise CalibrationError("a range has to have low <= high")
    scheme = scheme.resolve_sign(all_non_negative=bool((low >= 0).all()))
    if isinstance(scheme.grid, Codebook):
        return _even_codebook(low, high, scheme)
    scale, zero_point = scale_and_zero_point(low, high, scheme)
    return QParams(scale, zero_point, scheme)


def _even_codebook(low: Tensor, high: Tensor, scheme: Scheme) -> QParams:
    to_one = replace(scheme, bits=2 if scheme.signed else 1, narrow=False, grid=Uniform())  # its highest level is 1
    scale, zero_point = scale_and_zero_point(low, high, to_one)
    first = float((low.clamp(max=0) / scale).min()) if scheme.signed else 0.0
    codebook = torch.linspace(first, float((high.clamp(min=0) / scale).max()), 1 << scheme.bits, device=scale.device)
    return QParams(scale, zero_point, scheme, codebook)


def scale_and_zero_point(low: Tensor, high: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """The formulas of `qparams_of_range` on tensors alone, unchecked, so that they trace under `torch.export`."""
    low, high = low.double().clamp(max=0.0), high.double().clamp(min=0.0)
    lowest, highest = scheme.quant_min, scheme.quant_max
    if isinstance(scheme.grid, Geometric):
        largest = torch.maximum(high, -low)
        largest = torch.where(largest > 0, largest.clamp(min=SMALLEST_SCALE), 1.0)
        scale = geometric_scale(largest, scheme.grid, scheme.bits)
        return scale.clamp(min=SMALLEST_SCALE).float(), torch.zeros_like(low, dtype=torch.int32)
    if isinstance(scheme.grid, Float16):
        return torch.ones_like(low).float(), torch.zeros_like(low, dtype=torch.int32)
    if scheme.symmetric:
        scale = torch.maximum(high, -low) / max(highest, 1) if scheme.signed else high / highest
    else:
        scale = (high - low) / (highest - lowest)
    scale = torch.where(scale > 0, scale.clamp(min=SMALLEST_SCALE), 1.0)
    if isinstance(scheme.scale, PowerOfTwo):
        scale = torch.exp2(scale.log2().round())
    scale = scale.float()
    if scheme.symmetric:
        return scale, torch.zeros_like(scale, dtype=torch.int32)
    zero_point = (lowest - low / scale.double()).round().clamp(lowest, highest)
    return scale, zero_point.to(torch.int32)


def dynamic_range(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and zero point of unsigned bytes over one input's range, in the float32 steps of ONNX Runtime's kernel.

    s = (high - low) / 255 over the range widened to hold 0, 1 where it is empty; z = rint(clip(0 - low / s, 0, 255)).
    ONNX operators, DynamicQuantizeLinear. Each step rounds: computed in float64, a scale can differ in its last bit.
    """
    low, high = low.float().clamp(max=0.0), high.float().clamp(min=0.0)
    scale = torch.where(high > low, (high - low) / 255.0, 1.0)
    return scale, (0.0 - low / scale).clamp(0.0, 255.0).round().to(torch.int32)
