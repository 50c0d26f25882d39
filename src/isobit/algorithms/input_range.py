"""What values a network takes where no data shows them, and the shape of its input."""

from collections.abc import Sequence

import torch
from torch import Tensor

from isobit.core.errors import SettingError, UnsupportedError

Bound = float | Sequence[float]
InputRange = tuple[Bound, Bound] | None
"""The lowest and the highest value, each one number or one for each channel; None for values of mean 0, deviation 1."""

Example = Tensor | Sequence[int] | tuple[Tensor, ...]
"""An input of the network, or its shape with the batch in front: (1, 3, 224, 224)."""


def example_inputs(example: Example | None) -> tuple[Tensor, ...]:
    """The inputs of one sample. Raises SettingError for anything but tensors or one shape.

    >>> example_inputs((1, 3, 8, 8))[0].shape
    torch.Size([1, 3, 8, 8])
    """
    if isinstance(example, Tensor):
        return (example[:1],)
    if isinstance(example, Sequence) and example and all(isinstance(x, Tensor) for x in example):
        return tuple(x[:1] for x in example if isinstance(x, Tensor))
    sizes = [n for n in example or () if isinstance(n, int) and not isinstance(n, bool) and n > 0]
    if example is None or len(sizes) != len(example) or len(sizes) < 2:
        raise SettingError(
            f"without data, example has to be an input of the network or its shape, (1, 3, 224, 224), got {example!r}"
        )
    return (torch.zeros(1, *sizes[1:]),)


def only_input(inputs: tuple[Tensor, ...]) -> Tensor:
    """The one input, of floats. Raises UnsupportedError for several and for whole numbers, which nobody can invent."""
    if len(inputs) != 1 or not inputs[0].is_floating_point():
        kinds = " and ".join(f"{tuple(x.shape)} {str(x.dtype).removeprefix('torch.')}" for x in inputs)
        raise UnsupportedError(
            f"inputs can be invented for a network with one input of floats, this one takes {kinds}: give real samples"
        )
    return inputs[0]


def check_range(input_range: InputRange, channels: int) -> None:
    """Raise SettingError unless low < high, with one bound for all channels or one for each."""
    if input_range is None:
        return
    low, high = (torch.as_tensor(b, dtype=torch.float64).flatten() for b in input_range)
    if not {len(low), len(high)} <= {1, channels} or not bool((low < high).all()):
        raise SettingError(
            f"input_range has to be the lowest and the highest value, or such for each of the {channels} channels, "
            f"got {input_range!r}"
        )


def from_unit(x: Tensor, input_range: InputRange) -> Tensor:
    """Values of 0 to 1 in the range; without one, all of them shifted and scaled to mean 0 and deviation 1."""
    if input_range is None:
        return (x - x.mean()) / x.std(correction=0).clamp(min=1e-6)
    low, high = _bounds(x, input_range)
    return low + (high - low) * x


def from_normal(z: Tensor, input_range: InputRange) -> Tensor:
    """Values of mean 0 and deviation 1 in the range, which is two deviations to both sides; as they are without one."""
    if input_range is None:
        return z
    low, high = _bounds(z, input_range)
    return (low + high) / 2 + (high - low) / 4 * z


def _bounds(x: Tensor, input_range: tuple[Bound, Bound]) -> tuple[Tensor, Tensor]:
    low, high = (torch.as_tensor(b, dtype=x.dtype).reshape(1, -1, *[1] * (x.dim() - 2)) for b in input_range)
    return low, high
