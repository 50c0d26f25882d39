"""Whatever a user gets wrong: one clear text on stderr, the right exit code, no traceback, no file."""

from pathlib import Path

import pytest

from cli.bad_input import CASES, Case, invoke


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_text_and_exit_code(case: Case, here: Path) -> None:
    (here / "net.onnx").rename(here / "kept.onnx") if case.absent else None
    with case.under():
        result = invoke(case.command)
    assert result.stderr.startswith("error: "), result.output
    for text in case.says:
        assert text in result.stderr
    assert result.exit_code == case.code, result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    if case.absent:
        assert not (here / case.absent).exists()
        assert not [p for p in here.iterdir() if p.name.endswith(".part")]
