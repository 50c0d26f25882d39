"""Images with the statistics of natural ones, from nothing: dead leaves (Baradad et al. 2021, arXiv:2106.05963)."""

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from isobit.algorithms.input_range import InputRange, check_range, from_unit, only_input
from isobit.core.errors import UnsupportedError
from isobit.core.progress import Progress, silent

SMALLEST = 0.01
"""Radius of the smallest leaf, in sides of the image; the largest has half a side."""

LEAVES = 400
"""Leaves in one image: enough to cover nearly all of it."""

SLOPES = (0.5, 2.0)
"""Exponents of the spectrum of pink noise; 1 is that of natural images."""


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class DeadLeaves:
    """Settings: the values that the network takes, mean 0 and deviation 1 for none; nothing else of it is used."""

    batch_size: int = 16
    input_range: InputRange = None

    def synthesize(
        self,
        net: nn.Module,
        example: tuple[Tensor, ...],
        *,
        samples: int,
        seed: int = 0,
        progress: Progress = silent,
    ) -> list[Tensor]:
        """Batches of images of the example's size. Raises UnsupportedError for inputs that are no images of floats."""
        del net
        x = only_input(example)
        if x.dim() != 4:
            raise UnsupportedError(f"dead leaves are images, the network takes {tuple(x.shape)}: give real samples")
        channels, height, width = map(int, x.shape[1:])
        check_range(self.input_range, channels)
        generator = torch.Generator().manual_seed(seed)
        parts, sizes = [], [min(self.batch_size, samples - i) for i in range(0, samples, self.batch_size)]
        for number, size in enumerate(sizes, start=1):
            parts.append(dead_leaves(size, (channels, height, width), generator=generator))
            progress("drawing images", number, len(sizes))
        images = from_unit(torch.cat(parts), self.input_range).to(x)
        return list(torch.split(images, self.batch_size))


def dead_leaves(count: int, size: tuple[int, int, int], *, generator: torch.Generator) -> Tensor:
    """Discs that cover each other, (count, channels, height, width) in [0, 1].

    Radii have the density r⁻³, which makes the statistics the same at every scale (section 3.2); each image draws its
    own range of colours, and each leaf is as bright from its middle to its rim, but for an octave of pink noise.
    """
    images = pink_noise(count, size, generator=generator)
    texture = pink_noise(count, size, generator=generator) - 0.5
    channels, height, width = size
    side = max(height, width)
    for image in images:
        draws = torch.rand(LEAVES, 3 + channels, generator=generator)
        radii = _radii(draws[:, 0]) * side
        tops = (draws[:, 1] * height).tolist()
        lefts = (draws[:, 2] * width).tolist()
        low, spread = torch.rand(2, generator=generator).tolist()
        colours = draws[:, 3:] * (0.4 + 0.6 * spread)
        colours = colours + low * (1 - 0.4 - 0.6 * spread)
        for r, y, x, colour in zip(radii.tolist(), tops, lefts, colours, strict=True):
            _paint(image, r, y, x, colour)
    return (images + 0.3 * texture).clamp(0, 1)


def pink_noise(count: int, size: tuple[int, int, int], *, generator: torch.Generator) -> Tensor:
    """Noise with the amplitude 1 / f^a at the frequency f, (count, channels, height, width) in [0, 1] (section 3.1).

    a is drawn for each image from `SLOPES`; half of the signal is common to the channels.
    """
    channels, height, width = size
    rows, columns = torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None]
    f = (rows.square() + columns.square()).sqrt()
    f[0, 0] = math.inf
    a = torch.empty(count, 1, 1, 1).uniform_(*SLOPES, generator=generator)
    white = torch.randn(count, channels, height, width, generator=generator)
    white = white + torch.randn(count, 1, height, width, generator=generator)
    pink = torch.fft.irfft2(torch.fft.rfft2(white) / f**a, s=(height, width))
    low, high = pink.amin((1, 2, 3), keepdim=True), pink.amax((1, 2, 3), keepdim=True)
    unit: Tensor = (pink - low) / (high - low).clamp(min=1e-12)
    return unit


def _radii(u: Tensor) -> Tensor:
    """From uniform draws to radii with the density r⁻³ between `SMALLEST` and a half."""
    low, high = SMALLEST**-2, 0.5**-2
    return (low + u * (high - low)).rsqrt()


def _paint(image: Tensor, r: float, y: float, x: float, colour: Tensor) -> None:
    """Put a disc into an image, in place."""
    _, height, width = image.shape
    top, bottom = max(0, int(y - r)), min(height, int(y + r) + 2)
    left, right = max(0, int(x - r)), min(width, int(x + r) + 2)
    rows = torch.arange(top, bottom, dtype=torch.float32)[:, None] - y
    columns = torch.arange(left, right, dtype=torch.float32)[None] - x
    inside = rows.square() + columns.square() <= r * r
    part = image[:, top:bottom, left:right]
    part.copy_(torch.where(inside, colour[:, None, None], part))
