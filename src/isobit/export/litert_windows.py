"""Padding of windows: LiteRT's own two ways, SAME and VALID, and a PAD in front where neither fits."""

import numpy as np

from isobit.core.errors import UnsupportedError
from isobit.export.litert_graph import Translation, Value
from isobit.integer.windows import Window

SAME, VALID = 0, 1


def sizes(x: Value) -> list[int]:
    """The shape with 0 for the batch."""
    return [0 if size is None else size for size in x.shape]


def padded(
    t: Translation, x: Value, window: Window, name: str, *, lowest: bool = False, average: bool = False
) -> tuple[Value, int]:
    """The input of a window, padded where LiteRT's own two ways of padding do not fit; and which of these it is."""
    pads = (*window.before, *window.after)
    if not any(pads):
        return x, VALID
    if pads == _same_pads(window, x):
        return x, SAME
    if average:
        raise UnsupportedError(f"LiteRT: {name} is an average over a padding that LiteRT does not have")
    return with_pads(t, x, window, name, lowest=lowest), VALID


def with_pads(t: Translation, x: Value, window: Window, name: str, *, lowest: bool = False) -> Value:
    """The input with a window's pads around it: zeros, or what is lower than all else."""
    if not any((*window.before, *window.after)):
        return x
    large = [s + b + a for s, b, a in zip(sizes(x)[2:], window.before, window.after, strict=True)]
    y = t.scratch(f"{name}/padded", (*x.shape[:2], *large), x.format, channels_last=True)
    spread = [(0, 0), *zip(window.before, window.after, strict=True), (0, 0)]
    write_pad(t, x, y, np.array(spread, np.int32), lowest=lowest)
    return y


def write_pad(t: Translation, x: Value, y: Value, pads: np.ndarray, *, lowest: bool = False) -> None:
    """PAD, or PADV2 where something else than zero is padded; `pads` as they lie in the file."""
    constant = t.builder.constant(f"{y.name}/pads", pads)
    if not lowest or (x.format is not None and x.format.zero_point == x.format.low):
        t.builder.op("PAD", [x.index, constant], [y.index], version=2 if x.format else 1)
        return
    value = np.float32("-inf") if x.format is None else np.int16(x.format.low)
    fill = t.array(f"{y.name}/fill", np.asarray(value), x.format)
    t.builder.op("PADV2", [x.index, constant, fill.index], [y.index], version=2 if x.format else 1)


def _same_pads(window: Window, x: Value) -> tuple[int, ...]:
    """What SAME pads: as little as needed, the odd one at the end."""
    before, after = [], []
    for i, size in enumerate(sizes(x)[2:]):
        extent = (window.kernel[i] - 1) * window.dilations[i] + 1
        total = max(0, (-(-size // window.strides[i]) - 1) * window.strides[i] + extent - size)
        before.append(total // 2)
        after.append(total - total // 2)
    return (*before, *after)
