"""What flows through the interpreter: floats, integers, and integers with the scale that turns them into floats."""

from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Format:
    """x = scale · (q - zero_point), low <= q <= high: what a QuantizeLinear or DequantizeLinear node says."""

    scale: np.float32
    zero_point: int
    low: int
    high: int

    @property
    def signed(self) -> bool:
        """Whether the integers are signed."""
        return self.low < 0

    @property
    def bits(self) -> int:
        """The width of the integers."""
        return (self.high - self.low).bit_length()

    @property
    def twin(self) -> "Format":
        """The unsigned format of the same values: all integers are 128 higher."""
        return Format(self.scale, self.zero_point + 128, self.low + 128, self.high + 128)


@final
@dataclass(frozen=True, eq=False, slots=True)
class Integers:
    """A tensor of integers, held exactly in float32, as QuantizeLinear writes it."""

    q: Tensor
    low: int
    high: int


@final
@dataclass(frozen=True, eq=False, slots=True)
class Quantized:
    """Integers seen through DequantizeLinear."""

    q: Tensor
    format: Format

    @property
    def centred(self) -> Tensor:
        """q - zero_point."""
        return self.q - self.format.zero_point if self.format.zero_point else self.q

    @property
    def floats(self) -> Tensor:
        """The float32 values, as DequantizeLinear computes them: one product, rounded once."""
        return self.centred * float(self.format.scale)

    @property
    def twin(self) -> "Quantized":
        """The same values as unsigned integers."""
        return Quantized(self.q + 128, self.format.twin)


@final
@dataclass(frozen=True, eq=False, slots=True)
class Constant:
    """An integer initializer seen through DequantizeLinear: a weight, or a bias of int32. Scale: () or along `axis`."""

    q: np.ndarray
    scale: np.ndarray
    zero_point: np.ndarray
    axis: int

    @property
    def centred(self) -> np.ndarray:
        """q - zero_point, int64."""
        return np.asarray(self.q.astype(np.int64) - self._along(self.zero_point.astype(np.int64)))

    @property
    def floats(self) -> np.ndarray:
        """The float32 values."""
        return np.asarray(self.centred.astype(np.float32) * self._along(self.scale.astype(np.float32)))

    @property
    def format(self) -> Format | None:
        """As an activation's format, where there is one scale and the integers have 8 bits."""
        if self.scale.size != 1 or self.q.dtype not in (np.dtype(np.uint8), np.dtype(np.int8)):
            return None
        limits = np.iinfo(self.q.dtype)
        zero_point = int(self.zero_point.reshape(-1)[0])
        return Format(np.float32(self.scale.reshape(-1)[0]), zero_point, int(limits.min), int(limits.max))

    def transposed(self, order: list[int]) -> "Constant":
        """With its dimensions in another order."""
        return Constant(self.q.transpose(order), self.scale, self.zero_point, order.index(self.axis % self.q.ndim))

    def as_quantized(self) -> Quantized:
        """As an activation; call only where `format` is not None."""
        assert self.format is not None
        return Quantized(torch.from_numpy(self.q.astype(np.float32)), self.format)

    def _along(self, values: np.ndarray) -> np.ndarray:
        if values.size == 1:
            return values.reshape(())
        shape = [1] * self.q.ndim
        shape[self.axis] = values.size
        return values.reshape(shape)


Value = Tensor | Integers | Quantized | Constant
