"""A folder that one process owns."""

import subprocess
import sys
from pathlib import Path

import pytest

from cli.bad_input import invoke
from isobit.core.errors import OutputError
from isobit.core.files import owned

HOLD = """
import sys
from isobit.core.files import owned
with owned(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no flock")


def test_the_second_process_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "a"
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None and other.stdout.readline() == "held\n"
    with pytest.raises(OutputError, match=r"another isobit process writes into .*a: wait"), owned(folder):
        pass
    other.kill()
    other.communicate(timeout=60)
    with owned(folder) as mine:
        assert list(mine.iterdir()) == []
    with owned(folder):
        pass


def test_commands_say_so(tmp_path: Path) -> None:
    recipe, matrix = tmp_path / "recipe.toml", tmp_path / "matrix.toml"
    text = 'network = "isobit.benchmark.models:DigitsResNet"\ndata = "digits:train"\nevaluation = "digits:test"\n'
    recipe.write_text(text)
    matrix.write_text('[axes]\nmethod = ["lsq"]\n[recipe]\n' + text)
    with owned(tmp_path / "run"):
        for command in (f"train {recipe}", f"bench {matrix}"):
            done = invoke(f"{command} -o {tmp_path / 'run'}")
            assert done.exit_code == 7, done.output
            assert "another isobit process writes into" in " ".join(done.stderr.split())


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="it is a file"), owned(tmp_path / "file"):
        pass
    with pytest.raises(OutputError, match=r"is no folder|it is a file"), owned(tmp_path / "file" / "runs"):
        pass
