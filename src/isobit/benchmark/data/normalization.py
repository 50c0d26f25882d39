"""From pixels to what a network was trained on."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from isobit.core.errors import UnknownNameError


@dataclass(frozen=True, kw_only=True, slots=True)
class Normalization:
    """y = (x / divisor - mean) / std, with x the pixel in 0..255, and one mean and std per channel or one for all."""

    divisor: float = 255.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def apply(self, pixels: NDArray[np.uint8]) -> Tensor:
        """(n, h, w, c) uint8 pixels -> (n, c, h, w) float32."""
        x = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))).float()
        mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (self.mean, self.std))
        return (x / self.divisor - mean) / std


NORMALIZATIONS: dict[str, Normalization] = {
    "torch": Normalization(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    "tf": Normalization(divisor=127.5, mean=(1.0,)),
    "unit": Normalization(),
    "pixels": Normalization(divisor=1.0),
}


def normalization(choice: Normalization | str) -> Normalization:
    """A `Normalization` as it is, or the one of that name.

    `torch`: ImageNet's mean and standard deviation; `tf`: x / 127.5 - 1; `unit`: x / 255; `pixels`: 0..255.
    Raises UnknownNameError.
    """
    if isinstance(choice, Normalization):
        return choice
    if choice not in NORMALIZATIONS:
        raise UnknownNameError("normalization", choice, NORMALIZATIONS)
    return NORMALIZATIONS[choice]
