"""Training batches of small images: decoded once, shuffled, cropped and mirrored as a function of seed and epoch."""

from collections.abc import Iterator
from typing import final

import torch
from torch import Tensor

from isobit.core.batches import Data, batches
from isobit.core.errors import CalibrationError, SettingError


@final
class TrainingSet:
    """The usual augmentation of CIFAR: `crop` pixels of padding, a random window of the old size, a random mirror.

    The samples of `data`, batches (x, labels), are read once and kept. What comes in at a border is black: the lowest
    value that each channel has in the data. The last, smaller batch of an epoch is dropped. With `labels` false, `data`
    needs none, and the batches are (x,).

    >>> data = [(torch.zeros(10, 3, 8, 8), torch.arange(10))]
    >>> [tuple(x.shape) for x, _ in TrainingSet(data, batch_size=4).epoch(0)]
    [(4, 3, 8, 8), (4, 3, 8, 8)]
    """

    def __init__(
        self,
        data: Data,
        *,
        batch_size: int = 128,
        crop: int = 0,
        mirror: bool = False,
        seed: int = 0,
        labels: bool = True,
    ) -> None:
        parts = list(batches(data, name="training data"))
        found = [part.labels for part in parts if part.labels is not None]
        if labels and len(found) != len(parts):
            raise CalibrationError("the training data has no labels: give batches (x, labels)")
        self.x, self.y = torch.cat([part.inputs[0] for part in parts]), torch.cat(found) if labels else None
        samples = len(self.x)
        if not 1 <= batch_size <= samples:
            raise SettingError(f"batch_size has to be from 1 to the {samples} samples there are, got {batch_size}")
        if (crop or mirror) and self.x.dim() != 4:
            raise SettingError(f"crop and mirror are for images, not for samples {tuple(self.x.shape[1:])}")
        self.batch_size, self.crop, self.mirror, self.seed = batch_size, crop, mirror, seed
        self.steps = samples // batch_size
        self.black = self.x.amin((0, 2, 3), keepdim=True) if crop else torch.zeros(())

    def epoch(self, number: int, *, rank: int = 0, ranks: int = 1) -> Iterator[tuple[Tensor, ...]]:
        """The batches of one epoch; each of several processes gets its own part of every batch."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        order = torch.randperm(len(self.x), generator=generator)[: self.steps * self.batch_size]
        for chosen in torch.split(order, self.batch_size):
            x = self._cropped(self.x[chosen], generator)
            if self.mirror:
                turned = torch.rand(len(x), generator=generator) < 0.5
                x[turned] = x[turned].flip(3)
            if self.y is None:
                yield (x[rank::ranks],)
            else:
                yield x[rank::ranks], self.y[chosen][rank::ranks]

    def _cropped(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Each image (n, c, h, w) moved by up to `crop` pixels in each direction."""
        if not self.crop:
            return x
        (height, width), crop = x.shape[2:], self.crop
        wide = self.black.expand(*x.shape[:2], height + 2 * crop, width + 2 * crop).clone()
        wide[:, :, crop : crop + height, crop : crop + width] = x
        windows = wide.unfold(2, height, 1).unfold(3, width, 1)  # (n, c, positions, positions, h, w)
        down, right = torch.randint(0, 2 * crop + 1, (2, len(x)), generator=generator)
        return windows[torch.arange(len(x)), :, down, right].clone()
