"""Arrays from `.npz` files without unpickling, and images from the JPEG bytes in them."""

import io
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isobit.core.errors import CalibrationError, MissingExtraError, UnknownNameError

Array = NDArray[Any]


def read_arrays(path: str | Path, names: Iterable[str]) -> dict[str, Array]:
    """Read the named members of a `.npz` file. Raises CalibrationError, or UnknownNameError with the nearest key."""
    path = Path(path)
    keys = array_names(path)
    arrays = {}
    for name in names:
        if name not in keys:
            raise UnknownNameError(f"array in {path}", name, keys)
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays[name] = file[name]
        except ValueError as error:
            raise CalibrationError(
                f"array {name!r} of {path} cannot be read without unpickling, or is damaged ({error}). "
                "Save plain numeric arrays: numpy.savez(path, x=x, y=y)"
            ) from error
        except (OSError, zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise CalibrationError(f"array {name!r} of {path} is damaged: {error}") from error
    return arrays


def array_names(path: str | Path) -> list[str]:
    """The keys of a `.npz` file. Raises CalibrationError where it is missing, truncated or of another kind."""
    path = Path(path)
    if not path.is_file():
        raise CalibrationError(f"there is no data file {path}")
    try:
        with zipfile.ZipFile(path) as file:
            return [name.removesuffix(".npy") for name in file.namelist()]
    except (zipfile.BadZipFile, OSError) as error:
        raise CalibrationError(
            f"{path} is not a whole .npz file (truncated or of another kind): {error}. "
            "Write it with numpy.savez(path, x=x, y=y)"
        ) from error


def pillow_image() -> Any:
    """The module `PIL.Image`. Raises MissingExtraError."""
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError("Pillow", "images") from error
    return Image


def decode_rgb(content: bytes) -> Any:
    """A `PIL.Image` in RGB from the bytes of an image file."""
    return pillow_image().open(io.BytesIO(content)).convert("RGB")
