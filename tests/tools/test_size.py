"""`tools/size.py` at, below and above its limits."""

import subprocess
import sys
from pathlib import Path

TOOL = Path(__file__).parents[2] / "tools" / "size.py"


def measured(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(TOOL), str(folder)], capture_output=True, text=True, check=False)


def function(name: str, lines: int, indent: str = "") -> str:
    return f"{indent}def {name}():\n" + f"{indent}    x = 1\n" * (lines - 1)


def test_at_the_limit_all_is_well_and_the_lists_are_sorted(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "long.py").write_text("x = 1\n" * 400)
    (tmp_path / "inner" / "short.py").write_text(function("little", 3) + "class C:\n" + function("big", 60, "    "))
    result = measured(tmp_path)
    assert result.returncode == 0
    assert result.stderr == ""
    assert [line.split(maxsplit=1) for line in result.stdout.splitlines()] == [
        ["lines", "per file: 2 of them, 464 lines"],
        ["400", "long.py"],
        ["64", "inner/short.py"],
        ["lines", "per function: 2 of them, 63 lines"],
        ["60", "inner/short.py:5 C.big"],
        ["3", "inner/short.py:1 little"],
    ]


def test_each_offender_is_named(tmp_path: Path) -> None:
    (tmp_path / "long.py").write_text("x = 1\n" * 401)
    (tmp_path / "functions.py").write_text("async " + function("outer", 2) + function("inner", 61, "    "))
    result = measured(tmp_path)
    assert result.returncode == 1
    assert result.stderr.splitlines() == [
        "too long: long.py has 401 lines, the limit is 400",
        "too long: functions.py:1 outer has 63 lines, the limit is 60",
        "too long: functions.py:3 outer.inner has 61 lines, the limit is 60",
    ]


def test_decorators_and_doc_strings(tmp_path: Path) -> None:
    body = '@cache\n@other\ndef f():\n    """One.\n\n    Two.\n    """\n    return 1\n'
    (tmp_path / "a.py").write_text(body)
    assert "     6  a.py:3 f\n" in measured(tmp_path).stdout


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    result = measured(tmp_path)
    assert result.returncode == 2
    assert "no Python files" in result.stderr
