"""From pixels to what a network was trained on."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from isobit.core.errors import CalibrationError, SettingError, UnknownNameError


@dataclass(frozen=True, kw_only=True, slots=True)
class Normalization:
    """y = (x / divisor - mean) / std, with x the pixel in 0..255, and one mean and std per channel or one for all.

    Raises SettingError where it would divide by zero, or mean and std differ in length.
    """

    divisor: float = 255.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        if not self.divisor > 0:
            raise SettingError(f"the divisor of a normalization has to be above 0, got {self.divisor}")
        if not all(s > 0 for s in self.std):
            raise SettingError(f"every std of a normalization has to be above 0, got {self.std}")
        if len({len(self.mean), len(self.std)} - {1}) > 1:
            raise SettingError(f"a normalization has {len(self.mean)} values of mean and {len(self.std)} of std")

    @property
    def channels(self) -> int:
        """How many channels it is made for; 1 fits any number."""
        return max(len(self.mean), len(self.std))

    def apply(self, pixels: NDArray[np.uint8]) -> Tensor:
        """(n, h, w, c) uint8 pixels -> (n, c, h, w) float32. Raises CalibrationError for another number of channels."""
        if self.channels not in (1, pixels.shape[3]):
            raise CalibrationError(
                f"images of {pixels.shape[3]} channels do not fit a normalization for {self.channels} channels"
            )
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
