"""Pooling and resizing."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isobit.core.errors import UnsupportedError
from isobit.graph.from_onnx.builder import Builder, example, fixed_shape, rank
from isobit.graph.from_onnx.op import Op
from isobit.graph.from_onnx.padding import padded, window_of
from isobit.graph.from_onnx.values import Size, Value, integers, numbers

_MAX: tuple[type[nn.Module], ...] = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
_AVERAGE: tuple[type[nn.Module], ...] = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
_GLOBAL: tuple[type[nn.Module], ...] = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
_GLOBAL_MAX: tuple[type[nn.Module], ...] = (nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d)


def max_pool(b: Builder, op: Op) -> Value:
    """MaxPool without its indices."""
    if any(op.outputs[1:]):
        raise UnsupportedError("the positions of its maxima are read; only the values are supported")
    x, kernel = op.needed(0), op.ints("kernel_shape")
    window = window_of(op, x, kernel)
    ceil = op.flag("ceil_mode")
    if any(p > k // 2 for p, k in zip(window.begin, window.kernel, strict=True)) and window.even:
        pads: Any = window.both()
        x, padding = b.call(F.pad, x, pads, "constant", float("-inf")), (0,) * len(kernel)
    else:
        x, padding = padded(b, x, window, float("-inf"))
    layer = _MAX[_dims(kernel)](window.kernel, window.stride, padding, dilation=window.dilation, ceil_mode=ceil)
    return b.layer(op, layer, x)


def average_pool(b: Builder, op: Op) -> Value:
    """AveragePool; uneven padding only where the zeros count."""
    x, kernel = op.needed(0), op.ints("kernel_shape")
    window = window_of(op, x, kernel)
    counted = op.flag("count_include_pad")
    if any(d != 1 for d in window.dilation):
        raise UnsupportedError("it is dilated, which no layer of torch is")
    if op.flag("ceil_mode") and not window.even:
        raise UnsupportedError("it is padded unevenly and rounds its size up")
    if not window.even and not counted:
        return _average_of_inside(b, op, x, window.both(), window.kernel, window.stride)
    x, padding = padded(b, x, window)
    if any(p > k // 2 for p, k in zip(padding, window.kernel, strict=True)):
        raise UnsupportedError("its padding is more than half of its kernel")
    layer = _AVERAGE[_dims(kernel)](
        window.kernel, window.stride, padding, ceil_mode=op.flag("ceil_mode"), count_include_pad=counted
    )
    return b.layer(op, layer, x)


def _average_of_inside(
    b: Builder, op: Op, x: Value, pads: list[int], kernel: tuple[int, ...], stride: tuple[int, ...]
) -> Value:
    """The mean over what lies inside: over all with zeros, times the share that lies inside, which is a constant."""
    layer = _AVERAGE[_dims(list(kernel))](kernel, stride)
    inside = layer(F.pad(torch.ones(1, 1, *fixed_shape(x, 2)), pads))
    mean = b.layer(op, layer, b.call(F.pad, x, pads))
    return b.call(torch.div, mean, inside)


def _dims(kernel: list[int]) -> int:
    if len(kernel) not in (1, 2, 3):
        raise UnsupportedError(f"it has {len(kernel)} spatial dimensions; 1, 2 and 3 are supported")
    return len(kernel) - 1


def global_pool(kinds: tuple[type[nn.Module], ...]) -> Callable[[Builder, Op], Value]:
    """One value for each channel."""

    def build(b: Builder, op: Op) -> Value:
        x = op.needed(0)
        if rank(x) not in (3, 4, 5):
            raise UnsupportedError(f"its input has {rank(x)} dimensions; 3 to 5 are supported")
        return b.layer(op, kinds[rank(x) - 3](1), x)

    return build


def resize(b: Builder, op: Op) -> Value:
    """Resize of the spatial axes."""
    x, dims = op.needed(0), rank(op.needed(0)) - 2
    mode, where = op.text("mode", "nearest"), op.text("coordinate_transformation_mode", "half_pixel")
    if op.flag("antialias") or op.flag("exclude_outside") or where == "tf_crop_and_resize":
        raise UnsupportedError("antialias, exclude_outside and tf_crop_and_resize are not supported")
    if op.text("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise UnsupportedError("only the policy stretch is supported")
    size, scales = _target(op, x, dims)
    if size is not None and scales is None and size == b.shape(x)[2:]:
        return x
    how: dict[str, Any] = {"scale_factor": scales} if scales is not None else {"size": size}
    if mode == "nearest":
        rounding = op.text("nearest_mode", "round_prefer_floor")
        kind = _nearest(where, rounding, scales, size, x)
        if kind is None:
            return _by_position(b, x, scales, size, where, rounding)
        return b.call(F.interpolate, x, mode=kind, **how)
    kinds = {"linear": ("linear", "bilinear", "trilinear"), "cubic": ("", "bicubic", "")}
    kind = kinds.get(mode, ("", "", ""))[dims - 1] if dims in (1, 2, 3) else ""
    if not kind or where not in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        raise UnsupportedError(f"the mode {mode} with {where} in {dims} dimensions is not supported")
    if mode == "cubic" and abs(float(op.number("cubic_coeff_a", -0.75)) + 0.75) > 1e-7:
        raise UnsupportedError("cubic interpolation has the factor -0.75 here, and another in the file")
    if where == "pytorch_half_pixel" and any(n == 1 for n in _lengths(size, scales, x)):
        raise UnsupportedError("pytorch_half_pixel down to one pixel is not supported")
    return b.call(F.interpolate, x, mode=kind, align_corners=where == "align_corners", **how)


def _target(op: Op, x: Value, dims: int) -> tuple[list[Any] | None, list[float] | None]:
    """The new spatial sizes, or the factors."""
    axes = [a % (dims + 2) for a in op.ints("axes", range(dims + 2))]
    scales, sizes = op.input(2), op.input(3)
    if sizes is not None:
        given = dict(zip(axes, numbers(sizes), strict=True))
        if 1 in given and given[1] != example(x).shape[1]:
            raise UnsupportedError("it resizes channels")
        return [given.get(i + 2) for i in range(dims)], None
    if scales is None or not numbers(scales):
        raise UnsupportedError("it has neither sizes nor scales")
    factors = dict(zip(axes, numbers(scales), strict=True))
    if any(isinstance(f, Size) for f in factors.values()):
        raise UnsupportedError("its scales depend on a size that the file leaves free")
    if any(factors.get(i, 1) != 1 for i in (0, 1)):
        raise UnsupportedError("it resizes the batch or the channels")
    return None, [float(factors.get(i + 2, 1.0)) for i in range(dims)]


def _lengths(size: list[Any] | None, scales: list[float] | None, x: Value) -> list[int]:
    """The new spatial sizes, where all are fixed, else none."""
    if size is not None:
        return [] if any(not isinstance(n, int) for n in size) else list(size)
    assert scales is not None
    try:
        return [int(n * s) for n, s in zip(fixed_shape(x, 2), scales, strict=True)]
    except UnsupportedError:
        return []


def _nearest(where: str, rounding: str, scales: list[float] | None, size: list[Any] | None, x: Value) -> str | None:
    """The mode of torch that takes the same pixels; None where only positions tell."""
    if where == "asymmetric" and rounding == "floor":
        return "nearest"
    whole = scales is not None and all(s == int(s) for s in scales)
    if size is not None:
        new = _lengths(size, None, x)
        try:
            whole = bool(new) and all(n % old == 0 for n, old in zip(new, fixed_shape(x, 2), strict=True))
        except UnsupportedError:
            whole = False
    if whole and where in ("half_pixel", "pytorch_half_pixel") and rounding.startswith("round"):
        return "nearest"  # a whole factor k repeats each pixel k times, whichever way ties go: there are none
    return None


def _by_position(
    b: Builder, x: Value, scales: list[float] | None, size: list[Any] | None, where: str, rounding: str
) -> Value:
    """Nearest pixels by their positions, computed here as the standard says."""
    new = _lengths(size, scales, x)
    if not new:
        raise UnsupportedError("its positions depend on a size that the file leaves free")
    for i, (n, old) in enumerate(zip(new, fixed_shape(x, 2), strict=True)):
        factor = scales[i] if scales is not None else n / old
        if n != old or factor != 1:
            x = b.call(torch.index_select, x, i + 2, _positions(n, old, factor, where, rounding))
    return x


def _positions(new: int, old: int, factor: float, where: str, rounding: str) -> Tensor:
    index = torch.arange(new, dtype=torch.float64)
    places = {
        "asymmetric": index / factor,
        "half_pixel": (index + 0.5) / factor - 0.5,
        "pytorch_half_pixel": (index + 0.5) / factor - 0.5 if new > 1 else index * 0,
        "half_pixel_symmetric": _symmetric(index, new, old, factor),
        "tf_half_pixel_for_nn": (index + 0.5) / factor,
        "align_corners": index * ((old - 1) / (new - 1) if new > 1 else 0.0),
    }
    roundings: dict[str, Callable[[Tensor], Tensor]] = {
        "floor": torch.floor,
        "ceil": torch.ceil,
        "round_prefer_floor": lambda p: torch.ceil(p - 0.5),
        "round_prefer_ceil": lambda p: torch.floor(p + 0.5),
    }
    if where not in places or rounding not in roundings:
        raise UnsupportedError(f"nearest pixels by {where} and {rounding} are not supported")
    return roundings[rounding](places[where]).long().clamp(0, old - 1)


def _symmetric(index: Tensor, new: int, old: int, factor: float) -> Tensor:
    adjustment = new / (factor * old)
    return old / 2 * (1 - adjustment) + (index + 0.5) / factor - 0.5


def depth_to_space(b: Builder, op: Op) -> Value:
    """Channels become pixels: column-row-depth order is a pixel shuffle."""
    x, block = op.needed(0), int(op.number("blocksize"))
    if op.text("mode", "DCR") == "CRD":
        return b.layer(op, nn.PixelShuffle(block), x)
    n, c, h, w = b.shape(x)
    apart = b.method("reshape", x, (n, block, block, c // (block * block), h, w))
    moved = b.method("permute", apart, (0, 3, 4, 1, 5, 2))
    return b.method("reshape", moved, (n, c // (block * block), h * block, w * block))


def space_to_depth(b: Builder, op: Op) -> Value:
    """Pixels become channels, those of a block first."""
    x, block = op.needed(0), int(op.number("blocksize"))
    n, c, h, w = b.shape(x)
    apart = b.method("reshape", x, (n, c, h // block, block, w // block, block))
    moved = b.method("permute", apart, (0, 3, 5, 1, 2, 4))
    return b.method("reshape", moved, (n, c * block * block, h // block, w // block))


def pad(b: Builder, op: Op) -> Value:
    """Pad with a constant, by reflection or by repeating the edge."""
    x, dims = op.needed(0), rank(op.needed(0))
    sides = integers(op.needed(1), "pads")
    axes = [a % dims for a in (integers(op.input(3), "axes") if op.input(3) is not None else range(dims))]
    half = len(axes)
    per_axis = {a: (sides[i], sides[i + half]) for i, a in enumerate(axes)}
    pairs = [per_axis.get(a, (0, 0)) for a in reversed(range(dims))]
    while pairs and pairs[-1] == (0, 0):
        pairs.pop()
    if not pairs:
        return x
    mode = op.text("mode", "constant")
    flat = [side for pair in pairs for side in pair]
    if mode == "constant":
        value = op.constant(2)
        if op.input(2) is not None and value is None:
            raise UnsupportedError("it pads with a value that is computed")
        number: Any = 0.0 if value is None else value.item()
        return b.call(F.pad, x, flat, "constant", number)
    names = {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}
    if mode not in names or len(pairs) > dims - 2 or any(side < 0 for side in flat):
        raise UnsupportedError(f"padding by {mode} is supported for spatial axes only, and not by less than 0")
    flat += [0] * (2 * (dims - 2) - len(flat))
    return b.call(F.pad, x, flat, names[mode])


OPS: Mapping[str, Callable[[Builder, Op], Value]] = {
    "MaxPool": max_pool,
    "AveragePool": average_pool,
    "GlobalAveragePool": global_pool(_GLOBAL),
    "GlobalMaxPool": global_pool(_GLOBAL_MAX),
    "Resize": resize,
    "DepthToSpace": depth_to_space,
    "SpaceToDepth": space_to_depth,
    "Pad": pad,
}
"""Windows, resolution and padding."""
