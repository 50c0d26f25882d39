"""What `isobit` exports is what it documents, and can be imported; importing it does not import torch."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import isobit
from isobit.core.errors import IsobitError

ROOT = Path(__file__).parents[1]


def test_every_public_name_is_there_and_documented() -> None:
    assert isobit.__all__ == sorted(isobit.__all__)
    for name in isobit.__all__:
        assert inspect.getdoc(getattr(isobit, name)), name
    assert set(isobit.__all__) <= set(dir(isobit))
    assert isobit.__doc__
    pages = [ROOT / "README.md", *(ROOT / "docs" / f"{p}.md" for p in ("tutorial", "training", "without_data"))]
    pages += (ROOT / "docs" / "migration").glob("*.md")
    text = "".join(page.read_text() for page in pages) + isobit.__doc__
    undocumented = [n for n in isobit.__all__ if not re.search(rf"isobit\.{n}\b", text)]
    assert not undocumented


def test_functions_stay_functions_once_the_parts_of_their_names_are_imported() -> None:
    import isobit.export
    import isobit.verify

    for name in ("export", "prepare", "quantize", "verify"):
        assert inspect.isfunction(getattr(isobit, name)), name


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(isobit, "quantise")


def test_each_error_is_one_of_ours_says_what_it_means_and_has_an_exit_code() -> None:
    errors = [e for _, e in inspect.getmembers(isobit.errors, inspect.isclass) if e.__module__ == "isobit.core.errors"]
    assert len(errors) > 8
    for error in errors:
        assert issubclass(error, IsobitError)
        assert error.__doc__
        assert 1 <= error.exit_code <= 8


def test_importing_isobit_is_quick() -> None:
    """Torch takes seconds; `isobit --help` should not."""
    code = "import sys, isobit; raise SystemExit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
