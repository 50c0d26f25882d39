"""The exact range of what was seen, per scale, and the way from a tensor to rows and back."""

from collections.abc import Iterator
from typing import final

import torch
from torch import Tensor

from isobit.core.errors import CalibrationError
from isobit.core.granularity import PerTensor, blocks, from_blocks, scale_shape
from isobit.core.qparams import QParams, qparams_of_range
from isobit.core.scheme import Scheme


@final
class SeenRange:
    """Lowest value, highest value and number of values of each row: one row for each scale.

    Statistics are those of the values in float32, the precision of a scale.
    """

    def __init__(self, scheme: Scheme) -> None:
        self.scheme = scheme
        self.count = 0
        """How many values each row has seen."""
        self._shape: tuple[int, ...] = ()
        self._low = self._high = torch.empty(0)

    def see(self, x: Tensor) -> Tensor | None:
        """Take in a batch and return it as rows, (scales, values) in float32; None where it is empty.

        The rows may share memory with `x`. Raises CalibrationError where `x` holds NaN or Inf, or asks for
        another number of scales than the batches before.
        """
        if x.numel() == 0:
            return None
        rows = self._rows(x.detach())
        low, high = row_range(rows)
        if not bool((torch.isfinite(low) & torch.isfinite(high)).all()):
            kind = "NaN" if bool(torch.isnan(rows).any()) else "Inf, or a value too large for float32"
            raise CalibrationError(
                f"a tensor of shape {tuple(x.shape)} to calibrate on holds {kind}. Remove or repair that sample"
            )
        if self.count:
            low, high = torch.minimum(self._low, low), torch.maximum(self._high, high)
        self._low, self._high, self._shape = low, high, tuple(x.shape)
        self.count += rows.shape[1]
        return rows

    @property
    def low(self) -> Tensor:
        """The lowest value of each row, (scales,). Raises CalibrationError where nothing was seen."""
        self._check_seen()
        return self._low

    @property
    def high(self) -> Tensor:
        """The highest value of each row, (scales,). Raises CalibrationError where nothing was seen."""
        self._check_seen()
        return self._high

    def resolved_scheme(self) -> Scheme:
        """The scheme with `adapt_sign` settled by what was seen: a range that was clipped to 0 doesn't count."""
        return self.scheme.resolve_sign(all_non_negative=bool((self.low >= 0).all()))

    def arrange(self, values: Tensor) -> Tensor:
        """One value per row, in the shape of the scale."""
        return from_blocks(values, self._shape, self.scheme.granularity)

    def qparams(self, low: Tensor, high: Tensor) -> QParams:
        """The parameters for a range per row, each (scales,)."""
        return qparams_of_range(self.arrange(low), self.arrange(high), self.resolved_scheme())

    def _rows(self, x: Tensor) -> Tensor:
        granularity = self.scheme.granularity
        if self.count and scale_shape(tuple(x.shape), granularity) != scale_shape(self._shape, granularity):
            raise CalibrationError(
                f"a tensor of shape {tuple(x.shape)} does not have the scales of the one before, of shape "
                f"{self._shape}, under {granularity}: give every batch the same shape along the axes that carry scales"
            )
        rows = flat(x) if isinstance(granularity, PerTensor) else blocks(x, granularity)
        rows = rows.to(torch.float32)
        return rows.to(self._low.device) if self.count else rows

    def _check_seen(self) -> None:
        if not self.count:
            raise CalibrationError(
                "an observer that saw no data has no range: show it at least one calibration batch with see(x) first"
            )


def flat(x: Tensor) -> Tensor:
    """View `x` as (1, values) in the order of its memory, so that no layout (such as channels-last) costs a copy."""
    strides = x.stride()
    order = sorted(range(x.dim()), key=lambda axis: -strides[axis])
    return x.permute(order).reshape(1, -1)


def in_float64(rows: Tensor) -> Iterator[Tensor]:
    """The values of all rows some columns at a time, in float64: small enough for the cache, a tenth of the time."""
    for values in torch.split(rows, max(64, (1 << 15) // len(rows)), dim=1):
        yield values.double()


def row_range(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The lowest and highest value of each row; NaN where the row holds NaN."""
    if rows.shape[0] == 1:  # the full reduction is vectorized, eight times faster than the one along an axis
        low, high = torch.aminmax(rows)
        return low.reshape(1), high.reshape(1)
    return rows.amin(1), rows.amax(1)
