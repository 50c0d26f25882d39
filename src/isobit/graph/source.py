"""Where in the user's code something happened."""

import linecache
import re
import traceback
from pathlib import Path

import torch
from torch import fx

_OURS = str(Path(__file__).parent)
_TORCH = str(Path(torch.__file__).parent)


def line_of_error(error: BaseException) -> str:
    """The innermost line of user code that an error passed through, as `file:line: code`; empty where none."""
    found = ""
    for frame in traceback.extract_tb(error.__traceback__):
        if not _foreign(frame.filename):
            found = _place(frame.filename, frame.lineno or 0)
    return found


def line_of_node(node: fx.Node) -> str:
    """The line of user code that made a node, as `file:line: code`; empty where it is not known."""
    frames = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
    return next((_place(f, int(n)) for f, n in reversed(frames) if not _foreign(f)), "")


def _foreign(file: str) -> bool:
    return file.startswith((_OURS, _TORCH, "<")) or f"{'/'}contextlib.py" in file


def _place(file: str, line: int) -> str:
    code = linecache.getline(file, line).strip()
    return f"{file}:{line}" + (f": {code}" if code else "")
