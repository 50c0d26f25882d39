"""Texts that a refactor has to leave byte-equal, under tests/golden.

ISOBIT_WRITE_GOLDEN=1 pytest tests/contracts     writes them anew; read the difference before you commit it
"""

import difflib
import os
from pathlib import Path

FOLDER = Path(__file__).parent / "golden"
WRITE = os.environ.get("ISOBIT_WRITE_GOLDEN") == "1"


def check_golden(name: str, lines: list[str]) -> None:
    """Compare with the stored text, or store it."""
    path, text = FOLDER / name, "".join(f"{line}\n" for line in lines)
    if WRITE:
        path.write_text(text)
    if not path.is_file():
        raise AssertionError(f"no golden file {name}: write it with ISOBIT_WRITE_GOLDEN=1")
    stored = path.read_text()
    if text != stored:
        change = "\n".join(difflib.unified_diff(stored.splitlines(), lines, name, "now", lineterm="", n=0))
        raise AssertionError(f"{name} changed; if it should, write it with ISOBIT_WRITE_GOLDEN=1\n{change}")
