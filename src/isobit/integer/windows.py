"""Windows: kernel, strides, pads and dilations of convolutions and pooling, as ONNX writes them."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import ceil

import torch
import torch.nn.functional as F
from torch import Tensor

from isobit.core.errors import UnsupportedError
from isobit.integer.model import Node


@dataclass(frozen=True, slots=True)
class Window:
    """`before` and `after` are the padded elements of each axis; `include_pad` counts them in an average."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    include_pad: bool = False

    def torch_pads(self, dims: int) -> list[int]:
        """The pads as `torch.nn.functional.pad` wants them: last axis first."""
        assert dims == len(self.kernel) + 2
        return [p for pair in zip(reversed(self.before), reversed(self.after), strict=True) for p in pair]


def window_of(node: Node, shape: Sequence[int], kernel: Sequence[int]) -> Window:
    """Read the attributes of `node` for an input of `shape`. `auto_pad` and `ceil_mode` become explicit pads."""
    n = len(kernel)
    strides, dilations = node.ints("strides", [1] * n), node.ints("dilations", [1] * n)
    pads = node.ints("pads", [0] * (2 * n))
    before, after = pads[:n], pads[n:]
    extent = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    mode = node.attributes.get("auto_pad", b"NOTSET").decode()
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        for i, size in enumerate(shape[2:]):
            total = max(0, (ceil(size / strides[i]) - 1) * strides[i] + extent[i] - size)
            small, large = total // 2, total - total // 2
            before[i], after[i] = (small, large) if mode == "SAME_UPPER" else (large, small)
    elif mode == "VALID":
        before, after = [0] * n, [0] * n
    if node.attributes.get("ceil_mode", 0):
        for i, size in enumerate(shape[2:]):
            if not (rest := (size + before[i] + after[i] - extent[i]) % strides[i]):
                continue
            if node.op != "MaxPool":  # what an average divides by at the end differs between engines
                raise UnsupportedError(f"{node.name}: ceil_mode with a size that the stride does not divide")
            start = size + before[i] + after[i] - extent[i] + strides[i] - rest
            if start < size + before[i]:  # a last window that would begin in the padding is left out
                after[i] += strides[i] - rest
    include = bool(node.attributes.get("count_include_pad", 0))
    return Window(tuple(kernel), tuple(strides), tuple(dilations), tuple(before), tuple(after), include)


def window_sums(x: Tensor, window: Window) -> Tensor:
    """Sums over windows, one element after the other in row order, each sum rounded to the dtype of `x`."""
    padded = F.pad(x, window.torch_pads(x.dim()))
    sizes = [
        (s - (k - 1) * d - 1) // stride + 1
        for s, k, d, stride in zip(padded.shape[2:], window.kernel, window.dilations, window.strides, strict=True)
    ]
    total: Tensor | None = None
    for offset in product(*(range(k) for k in window.kernel)):
        index = tuple(
            slice(o * d, o * d + (size - 1) * stride + 1, stride)
            for o, d, size, stride in zip(offset, window.dilations, sizes, window.strides, strict=True)
        )
        part = padded[(slice(None), slice(None), *index)]
        total = part.clone() if total is None else total.add_(part)
    assert total is not None
    return total


def window_counts(shape: Sequence[int], window: Window) -> Tensor:
    """How many elements each window averages; broadcasts against the result."""
    ones = torch.ones((1, 1, *shape[2:]))
    if window.include_pad:
        ones = F.pad(ones, window.torch_pads(ones.dim()), value=1.0)
        window = Window(
            window.kernel, window.strides, window.dilations, (0,) * len(window.kernel), (0,) * len(window.kernel)
        )
    return window_sums(ones, window)
