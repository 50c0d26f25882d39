"""Granularity: how many values of a tensor share one scale."""

from dataclasses import dataclass

from torch import Tensor

from isobit.core.errors import SettingError


@dataclass(frozen=True, slots=True)
class PerTensor:
    """One scale for the whole tensor; its shape is ()."""


@dataclass(frozen=True, slots=True)
class PerChannel:
    """One scale for each index along `axis`; its shape is (channels,)."""

    axis: int = 0


@dataclass(frozen=True, slots=True)
class PerGroup:
    """One scale for each run of `size` values along `axis`; its shape is x's, with groups in place of that axis."""

    axis: int = 1
    size: int = 32

    def __post_init__(self) -> None:
        if self.size < 1:
            raise SettingError(f"a group needs a size of at least 1, got {self.size}")


Granularity = PerTensor | PerChannel | PerGroup


def axis_of(granularity: PerChannel | PerGroup, dims: int) -> int:
    """The non-negative axis for a tensor of `dims` dimensions; raises SettingError where there is no such axis."""
    if not -dims <= granularity.axis < dims:
        raise SettingError(f"{granularity} needs an axis that the tensor has, and it has {dims} dimensions")
    return granularity.axis % dims


def blocks(x: Tensor, granularity: Granularity) -> Tensor:
    """View `x` as (number of scales, values that share it): what every observer and range search works on.

    >>> import torch
    >>> blocks(torch.zeros(4, 3, 2), PerChannel(1)).shape
    torch.Size([3, 8])
    >>> blocks(torch.zeros(4, 6), PerGroup(1, 2)).shape
    torch.Size([12, 2])
    """
    match granularity:
        case PerTensor():
            return x.reshape(1, -1)
        case PerChannel():
            axis = axis_of(granularity, x.dim())
            return x.movedim(axis, 0).reshape(x.shape[axis], -1)
        case PerGroup():
            axis = axis_of(granularity, x.dim())
            groups = group_count(x.shape[axis], granularity)
            last = x.movedim(axis, -1)
            return last.reshape(-1, groups, granularity.size).reshape(-1, granularity.size)


def scale_shape(shape: tuple[int, ...], granularity: Granularity) -> tuple[int, ...]:
    """The shape of the scale of a tensor of that shape."""
    match granularity:
        case PerTensor():
            return ()
        case PerChannel():
            return (shape[axis_of(granularity, len(shape))],)
        case PerGroup():
            axis = axis_of(granularity, len(shape))
            groups = group_count(shape[axis], granularity)
            return (*shape[:axis], groups, *shape[axis + 1 :])


def from_blocks(values: Tensor, shape: tuple[int, ...], granularity: Granularity) -> Tensor:
    """Arrange one value per block, in the order of `blocks`, in the shape of the scale."""
    if isinstance(granularity, PerGroup):
        axis = axis_of(granularity, len(shape))
        target = scale_shape(shape, granularity)
        moved = (*target[:axis], *target[axis + 1 :], target[axis])
        return values.reshape(moved).movedim(-1, axis)
    return values.reshape(scale_shape(shape, granularity))


def expand(scale: Tensor, dims: int, granularity: Granularity) -> Tensor:
    """Reshape a scale so that it broadcasts against the tensor of `dims` dimensions that it belongs to."""
    match granularity:
        case PerTensor():
            return scale
        case PerChannel():
            shape = [1] * dims
            shape[axis_of(granularity, dims)] = -1
            return scale.reshape(shape)
        case PerGroup():
            return scale.repeat_interleave(granularity.size, dim=axis_of(granularity, dims))


def group_count(length: int, granularity: PerGroup) -> int:
    """How many groups an axis of that length has; raises SettingError where the size does not divide it."""
    if length % granularity.size:
        raise SettingError(
            f"groups of {granularity.size} do not divide an axis of {length} values: choose a divisor of {length}"
        )
    return length // granularity.size
