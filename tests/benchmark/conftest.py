"""The shared data folder, or a skip that says why."""

import os
from pathlib import Path

import pytest


@pytest.fixture
def shared_data(monkeypatch: pytest.MonkeyPatch) -> Path:
    """`ISOBIT_DATA`, or `../shared/data` beside the repository."""
    folder = Path(os.environ.get("ISOBIT_DATA") or Path(__file__).parents[3] / "shared" / "data")
    if not folder.is_dir():
        pytest.skip("no data folder: set ISOBIT_DATA")
    monkeypatch.setenv("ISOBIT_DATA", str(folder))
    return folder
