"""Files that appear whole or not at all: a temporary name, fsync, then a rename."""

import contextlib
import errno
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from isobit.core.errors import OutputError


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Give a temporary path in the same folder; on a clean exit it is synced and renamed to `path`.

    A kill in the middle leaves `path` as it was. Raises OutputError where the folder is missing, read-only or
    full.
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        if temporary is None or error.errno in _WRITE_ERRORS:
            raise OutputError(_explain(path, error)) from error
        raise
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a whole file through `atomic_path`."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: str | Path, content: str) -> None:
    """Write a whole UTF-8 file through `atomic_path`."""
    write_bytes(path, content.encode())


def write_json(path: str | Path, value: Any) -> None:
    """Write sorted, indented JSON through `atomic_path`; NaN and Inf are refused."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n")


def check_writable(path: str | Path) -> None:
    """Raise OutputError now rather than after long work, where `path` could not be written."""
    path = Path(path)
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}."):
            pass
    except OSError as error:
        raise OutputError(_explain(path, error)) from error
    if path.is_dir():
        raise OutputError(f"cannot write {path}: it is a folder. Give a file name, such as {path / 'net.onnx'}")


@contextlib.contextmanager
def owned(folder: str | Path) -> Iterator[Path]:
    """Make a folder if need be, and be the only process that owns it until the end, however that comes.

    Raises OutputError where another process does, or where there can be no such folder. Systems and file systems
    without file locks, such as Windows, let several in.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise OutputError(f"cannot write into {folder}: it is a file. Choose another name") from error
    except OSError as error:
        raise OutputError(_explain(folder, error)) from error
    if sys.platform == "win32":
        yield folder
        return
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise OutputError(
            f"another isobit process writes into {folder}: wait for its end, or choose another folder"
        ) from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            os.close(handle)
            raise OutputError(_explain(folder, error)) from error
    try:
        yield folder
    finally:
        os.close(handle)


def sha256_of_file(path: str | Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF}
"""What network file systems say that do not lock folders."""

_WRITE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG}


def _explain(path: Path, error: OSError) -> str:
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return f"cannot write {path}: the disk is full. Free some space or choose another folder"
        case errno.ENOTDIR:
            return f"cannot write {path}: {path.parent} is no folder. Choose another one"
        case errno.ENOENT:
            return f"cannot write {path}: there is no folder {path.parent}. Create it first"
        case errno.EROFS | errno.EACCES | errno.EPERM:
            return f"cannot write {path}: the folder {path.parent} is read-only. Choose another one"
        case _:
            return f"cannot write {path}: {error.strerror or error}"


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
