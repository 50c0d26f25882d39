"""Dynamic: the range is that of each input, found while the network runs (no calibration data needed)."""

from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor, nn

from isobit.core.errors import UnsupportedError
from isobit.core.fake_quantize import fake_quantize
from isobit.core.granularity import blocks, from_blocks
from isobit.core.qparams import DynamicRange, QParams, dynamic_range, scale_and_zero_point
from isobit.core.rounding import Stochastic
from isobit.core.scheme import Scheme
from isobit.quantizers.protocol import Role

AS_ONNX = Scheme(signed=False, symmetric=False)
"""The one format that files have dynamic ranges for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Dynamic:
    """Settings of the dynamic quantizer. It has none."""

    observer: ClassVar[str] = "min_max"

    def build(self, scheme: Scheme, *, role: Role = "activation") -> "DynamicQuantizer":
        """Raises UnsupportedError for weights, for a sign that depends on data, and for stochastic rounding."""
        if role == "weight":
            raise UnsupportedError("a weight's range is known before the network runs: use `fixed` for weights")
        if scheme.adapt_sign:
            raise UnsupportedError("dynamic ranges need a fixed sign: use a scheme without adapt_sign")
        if isinstance(scheme.rounding, Stochastic):
            raise UnsupportedError("dynamic ranges are for inference, which rounds to nearest: use such a scheme")
        return DynamicQuantizer(scheme)


@final
class DynamicQuantizer(nn.Module):
    """s and z from the minimum and maximum of x itself; they carry no gradient, x̂ is straight-through to x.

    Per tensor, the whole batch shares one range, as ONNX's DynamicQuantizeLinear does.
    """

    def __init__(self, scheme: Scheme) -> None:
        super().__init__()
        self.scheme = scheme

    def calibrate(self, qparams: QParams) -> None:
        """Nothing to take: the range belongs to each input."""

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: x any that the granularity fits."""
        values = blocks(x.detach(), self.scheme.granularity)
        shape = tuple(x.shape)
        low = from_blocks(values.amin(1), shape, self.scheme.granularity)
        high = from_blocks(values.amax(1), shape, self.scheme.granularity)
        if self.scheme == AS_ONNX:
            scale, zero_point = dynamic_range(low, high)
        else:
            scale, zero_point = scale_and_zero_point(low, high, self.scheme)
        return fake_quantize(x, scale, zero_point, self.scheme)

    def grid(self) -> DynamicRange:
        """The scheme; the rest depends on the input."""
        return DynamicRange(self.scheme)

    def extra_repr(self) -> str:
        """The scheme in words."""
        return f"{self.scheme}, dynamic"
