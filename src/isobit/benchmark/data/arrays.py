"""Arrays from `.npz` files, without unpickling."""

import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isobit.core.errors import CalibrationError, UnknownNameError

Array = NDArray[Any]


def read_arrays(path: str | Path, names: Iterable[str]) -> dict[str, Array]:
    """Read the named members of a `.npz` file; those stored without compression are mapped, not read.

    Raises CalibrationError for a file that is missing, damaged or holds pickles, UnknownNameError with the nearest
    key for a member that is not there.
    """
    path = Path(path)
    keys = array_names(path)
    arrays = {}
    for name in names:
        if name not in keys:
            raise UnknownNameError(f"array in {path}", name, keys)
        try:
            arrays[name] = _member(path, f"{name}.npy")
        except (ValueError, OSError, zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise CalibrationError(
                f"array {name!r} of {path} cannot be read: {error}. "
                "Save plain numeric arrays, numpy.savez(path, x=x, y=y): pickled objects are never loaded"
            ) from error
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


def _member(path: Path, name: str) -> Array:
    with zipfile.ZipFile(path) as file:
        stored = file.getinfo(name).compress_type == zipfile.ZIP_STORED
        with file.open(name) as member:
            version = np.lib.format.read_magic(member)
            head = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = head(member)
            if stored and not dtype.hasobject and 0 not in shape and shape:
                # A stored member's bytes lie in the file as they are: how far `member` has come from its start is
                # how far the array lies behind the member's own start, which follows the local header.
                start = _data_start(path, file.getinfo(name).header_offset) + member.tell()
                return np.memmap(path, dtype=dtype, mode="r", offset=start, shape=shape, order="F" if fortran else "C")
    with np.load(path, allow_pickle=False) as arrays:
        found: Array = arrays[name.removesuffix(".npy")]
        return found


def _data_start(path: Path, header_offset: int) -> int:
    """Where a member's bytes start: a zip local header is 30 bytes, then the name, then the extra field."""
    with path.open("rb") as file:
        file.seek(header_offset + 26)
        name, extra = (int.from_bytes(file.read(2), "little") for _ in range(2))
    return header_offset + 30 + name + extra
