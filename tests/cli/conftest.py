"""A folder of good and bad inputs, made once."""

import os
import shutil
from pathlib import Path

import pytest

from cli import bad_input, inputs


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All inputs, and a file exported from them."""
    folder = tmp_path_factory.mktemp("inputs")
    inputs.write_inputs(folder)
    before = Path.cwd()
    os.chdir(folder)
    try:
        bad_input.write_exported(folder)
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of all inputs, as the current folder."""
    folder = tmp_path / "here"
    shutil.copytree(made, folder)
    monkeypatch.chdir(folder)
    return folder
