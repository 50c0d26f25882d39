"""Windows that slide over an input: kernel, stride, dilation and padding, as a file states them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import fx

from isobit.core.errors import UnsupportedError
from isobit.graph.from_onnx.builder import EXAMPLES, Builder
from isobit.graph.from_onnx.op import Op
from isobit.graph.from_onnx.values import Value


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """One entry for each spatial axis; `begin` and `end` are the zeros added on each side."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    begin: tuple[int, ...]
    end: tuple[int, ...]

    @property
    def even(self) -> bool:
        """Whether both sides get the same padding."""
        return self.begin == self.end

    def both(self) -> list[int]:
        """The padding as F.pad takes it: the last axis first, begin and end."""
        return [side for pair in reversed(list(zip(self.begin, self.end, strict=True))) for side in pair]


def window_of(op: Op, x: Value, kernel: Sequence[int]) -> Window:
    """The window of a convolution or pool over `x`. Raises UnsupportedError where SAME depends on a free size."""
    dims = len(kernel)
    ones = (1,) * dims
    stride, dilation = tuple(op.ints("strides", ones)), tuple(op.ints("dilations", ones))
    auto = op.text("auto_pad", "NOTSET")
    pads = op.ints("pads", (0,) * 2 * dims) if auto == "NOTSET" else [0] * 2 * dims
    begin, end = tuple(pads[:dims]), tuple(pads[dims:])
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        pairs = [
            _same(x, axis, k, s, d, upper=auto == "SAME_UPPER")
            for axis, (k, s, d) in enumerate(zip(kernel, stride, dilation, strict=True), start=2)
        ]
        begin, end = tuple(p[0] for p in pairs), tuple(p[1] for p in pairs)
    return Window(kernel=tuple(kernel), stride=stride, dilation=dilation, begin=begin, end=end)


def _same(x: Value, axis: int, kernel: int, stride: int, dilation: int, *, upper: bool) -> tuple[int, int]:
    lengths = {int(e.shape[axis]) for e in x.meta[EXAMPLES]} if isinstance(x, fx.Node) else {int(x.shape[axis])}
    totals = {max((-(-n // stride) - 1) * stride + (kernel - 1) * dilation + 1 - n, 0) for n in lengths}
    if len(totals) > 1 or (len(lengths) > 1 and stride > 1):
        raise UnsupportedError(
            "its padding (auto_pad) depends on a size that the file leaves free: export it with fixed sizes but the "
            "batch"
        )
    total = totals.pop()
    small = total // 2
    return (small, total - small) if upper else (total - small, small)


def padded(b: Builder, x: Value, window: Window, value: float = 0.0) -> tuple[Value, tuple[int, ...]]:
    """The input, padded where both sides differ, and the padding that is left for the layer."""
    if window.even:
        return x, window.begin
    if any(side < 0 for side in (*window.begin, *window.end)):
        raise UnsupportedError("its pads are negative")
    return b.call(F.pad, x, window.both(), "constant", value), (0,) * len(window.kernel)
