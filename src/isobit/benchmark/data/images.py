"""Images through Pillow: decode, resize, crop."""

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isobit.core.errors import CalibrationError, MissingExtraError

Pixels = NDArray[np.uint8]


def pillow_image() -> Any:
    """The module `PIL.Image`. Raises MissingExtraError."""
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError("Pillow", "images") from error
    return Image


def decode_rgb(content: bytes, *, name: str) -> Any:
    """A `PIL.Image` in RGB from the bytes of an image file. Raises CalibrationError that names the image."""
    image = pillow_image()
    try:
        return image.open(io.BytesIO(content)).convert("RGB")
    except image.UnidentifiedImageError as error:
        raise CalibrationError(f"{name} cannot be decoded: no image of a known format. Repair or remove it") from error
    except (OSError, SyntaxError, ValueError, image.DecompressionBombError) as error:
        raise CalibrationError(f"{name} cannot be decoded: {error}. Repair or remove it") from error


def resize_shorter(picture: Any, size: int) -> Any:
    """Scale a `PIL.Image` so that its shorter side is `size`; bilinear with antialiasing, as torchvision's `Resize`."""
    width, height = picture.size
    short, long = min(width, height), max(width, height)
    other = int(size * long / short)
    now = (size, other) if width <= height else (other, size)
    return picture if now == picture.size else picture.resize(now, pillow_image().Resampling.BILINEAR)


def center_crop(picture: Any, size: int, *, name: str) -> Pixels:
    """The middle `size` x `size` pixels, (size, size, 3), as torchvision's `CenterCrop`.

    Raises CalibrationError where the image is smaller.
    """
    width, height = picture.size
    if min(width, height) < size:
        raise CalibrationError(f"{name} has {width} x {height} pixels, too few for a crop of {size}: resize it first")
    left, top = round((width - size) / 2), round((height - size) / 2)
    return np.asarray(picture.crop((left, top, left + size, top + size)))
