"""Where in the user's code something happened."""

import linecache
import re
import traceback
from pathlib import Path

import torch
from torch import fx, nn

_OURS = str(Path(__file__).parent)
_TORCH = str(Path(torch.__file__).parent)


def line_of_error(error: BaseException) -> str:
    """The innermost line of user code that an error passed through, as `file:line: code`; empty where none."""
    found = ""
    for frame in traceback.extract_tb(error.__traceback__):
        if not _foreign(frame.filename):
            found = place_of_frame(frame.filename, frame.lineno or 0)
    return found


def module_of_error(error: BaseException, root: nn.Module) -> str:
    """The dotted name below `root` of the innermost module of the user whose forward an error passed through."""
    paths = {id(m): name for name, m in root.named_modules()}
    found = ""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        owner = paths.get(id(frame.f_locals.get("self")))
        if owner is not None and not _foreign(frame.f_code.co_filename):
            found = owner
    return found


def line_of_node(node: fx.Node) -> str:
    """The line of user code that made a node, as `file:line: code`; empty where it is not known."""
    frames = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
    return next((place_of_frame(f, int(n)) for f, n in reversed(frames) if not _foreign(f)), "")


def place_of_frame(file: str, line: int) -> str:
    """A line of a file with its code behind it."""
    code = linecache.getline(file, line).strip()
    return f"{file}:{line}" + (f": {code}" if code else "")


def _foreign(file: str) -> bool:
    """Whether a file is ours, torch's or Python's own: no place where the user could change something."""
    return file.startswith((_OURS, _TORCH, "<")) or Path(file).name == "contextlib.py"
