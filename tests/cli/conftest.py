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


@pytest.fixture
def shared_data(monkeypatch: pytest.MonkeyPatch) -> Path:
    """`ISOBIT_DATA`, or `../shared/data` beside the repository, or a skip."""
    folder = Path(os.environ.get("ISOBIT_DATA") or Path(__file__).parents[3] / "shared" / "data")
    if not folder.is_dir():
        pytest.skip("no data folder: set ISOBIT_DATA")
    monkeypatch.setenv("ISOBIT_DATA", str(folder))
    return folder
