"""A layer as a product of matrices: its weight as rows, the patches of its input that they meet as columns."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd


def weight_matrix(layer: nn.Module, weight: Tensor) -> Tensor:
    """A tensor of the weight's shape as (groups, output channels of one, columns).

    >>> weight_matrix(nn.Conv2d(4, 6, 3, groups=2), torch.zeros(6, 2, 3, 3)).shape
    torch.Size([2, 3, 18])
    """
    groups = int(getattr(layer, "groups", 1))
    grouped = weight.reshape(groups, -1, *weight.shape[1:])
    return (grouped.transpose(1, 2) if isinstance(layer, _ConvTransposeNd) else grouped).flatten(2)


def weight_of_matrix(layer: nn.Module, matrix: Tensor, shape: torch.Size) -> Tensor:
    """The inverse of `weight_matrix`, for a weight of that shape."""
    if not isinstance(layer, _ConvTransposeNd):
        return matrix.reshape(shape)
    groups = matrix.shape[0]
    return matrix.reshape(groups, shape[1], shape[0] // groups, *shape[2:]).transpose(1, 2).reshape(shape)


def input_columns(layer: nn.Module, x: Tensor, *, every: int = 1) -> Tensor:
    """What each output of a layer is the product of its weight with: (groups, columns, outputs of one channel).

    With W = `weight_matrix(layer, layer.weight)` the layer computes W @ `input_columns(layer, x)`, plus its bias. Of a
    linear layer's outputs only each `every`-th is taken, of a convolution's each `every`-th along each axis.
    Shapes: x (n, …, features) for a linear layer, (n, channels, …) for a convolution.
    """
    if not isinstance(layer, _ConvNd):
        return x.flatten(0, -2)[::every].T[None]
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    if isinstance(layer, _ConvTransposeNd):
        windows = _windows(_spread(layer, x), layer, stride=(1,) * len(layer.stride))
        windows = windows.flip(tuple(range(-len(layer.kernel_size), 0)))
    else:
        pads = layer._reversed_padding_repeated_twice
        padded = F.pad(x, pads, mode=mode) if any(pads) else x  # which copies even where it adds nothing
        windows = _windows(padded, layer, stride=layer.stride)
    dims = len(layer.kernel_size)
    windows = windows[(slice(None), slice(None), *(slice(None, None, every) for _ in range(dims)))]
    in_order = windows.permute(1, *range(2 + dims, 2 + 2 * dims), 0, *range(2, 2 + dims))
    return in_order.reshape(layer.groups, x.shape[1] // layer.groups * _product(layer.kernel_size), -1)


def _windows(x: Tensor, layer: _ConvNd, *, stride: tuple[int, ...]) -> Tensor:
    """(n, channels, positions…, kernel…), a view."""
    for axis, (size, dilation, step) in enumerate(zip(layer.kernel_size, layer.dilation, stride, strict=True)):
        x = x.unfold(2 + axis, dilation * (size - 1) + 1, step)[..., ::dilation]
    return x


def _spread(layer: _ConvTransposeNd, x: Tensor) -> Tensor:
    """The input with stride - 1 zeros between its values, padded: the transposed convolution is one of stride 1 of it.

    Its kernel then runs backwards.
    """
    shape = [(size - 1) * step + 1 for size, step in zip(x.shape[2:], layer.stride, strict=True)]
    spread = x.new_zeros(*x.shape[:2], *shape)
    places = (slice(None), slice(None), *(slice(None, None, step) for step in layer.stride))
    spread[places] = x
    pads: list[int] = []
    for axis in reversed(range(len(shape))):
        padding = layer.padding[axis]
        assert isinstance(padding, int)
        edge = layer.dilation[axis] * (layer.kernel_size[axis] - 1) - padding
        pads += [edge, edge + layer.output_padding[axis]]
    return F.pad(spread, pads)


def _product(sizes: tuple[int, ...]) -> int:
    return int(torch.Size(sizes).numel())
