"""`isobit engines` on a table of its own: what is there, what cannot be, and what fails while it installs."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.bad_input import invoke
from engines.tiny import tiny, tiny_wheel
from isobit.core.arithmetic import FLOAT32
from isobit.engines import ENGINES, Apart, Engine, Fake
from isobit.engines.environment import Environment


@pytest.fixture(autouse=True)
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Callable[[], Engine]]:
    monkeypatch.setenv("ISOBIT_ENGINES", str(tmp_path / "engines"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    nowhere = Environment(
        name="amiga", package="workbench", requirements=("workbench",), megabytes=1, platforms=("amiga-68k",)
    )
    broken = Environment(name="broken", package="nothing", requirements=("no-such-package-of-isobit",), megabytes=1)
    chosen: dict[str, Callable[[], Engine]] = {
        "fake": Fake,
        "one": lambda: apart("one", tiny(tiny_wheel(tmp_path))),
        "two": lambda: apart("two", tiny(tiny_wheel(tmp_path))),
        "amiga": lambda: apart("amiga", nowhere),
        "worse": lambda: apart("worse", broken),
    }
    for name in list(ENGINES):
        monkeypatch.delitem(ENGINES, name)
    for name, make in chosen.items():
        monkeypatch.setitem(ENGINES, name, make)
    return chosen


def apart(name: str, environment: Environment) -> Apart:
    return Apart(
        name=name, title=name.title(), format="onnx", arithmetic=FLOAT32, environment=environment, worker=Path("none")
    )


def listed(text: str) -> dict[str, tuple[str | None, str]]:
    return {row["name"]: (row["version"], row["missing"]) for row in json.loads(text)["engines"]}


def test_the_table_says_how_to_get_what_is_missing() -> None:
    result = invoke("engines --json")
    assert result.exit_code == 0
    rows = listed(result.stdout)
    assert rows["fake"][0] is not None
    assert rows["one"] == (None, "One is not installed. Install it with: isobit engines --install tiny")
    assert rows["amiga"][1].startswith("Amiga cannot be had here: workbench has no package for")
    shown = invoke("engines").stdout
    assert "--install tiny" in " ".join(shown.split()) and "isobit's own" in shown


def test_install_and_remove_by_the_name_of_an_engine() -> None:
    assert invoke("engines --install two").exit_code == 0
    rows = listed(invoke("engines --json").stdout)
    assert rows["one"] == rows["two"] == ("isobit-tiny 1.5", "")  # both live in one environment
    assert invoke("engines --remove tiny").exit_code == 0
    assert listed(invoke("engines --json").stdout)["one"][0] is None
    again = invoke("engines --remove tiny")
    assert again.exit_code == 8 and "there is no environment tiny" in again.stderr


def test_all_installs_what_it_can_and_names_what_failed() -> None:
    result = invoke("engines --install all --json")
    assert result.exit_code == 8
    assert "not installed: broken: broken cannot be installed" in result.stderr
    assert "no-such-package-of-isobit" in result.stderr and "amiga" not in result.stderr
    assert listed(result.stdout)["one"] == ("isobit-tiny 1.5", "")
    assert list(json.loads(result.stdout)["failed"]) == ["broken"]
    assert invoke("engines --remove all").exit_code == 0


@pytest.mark.parametrize(
    ("command", "code", "says"),
    [
        ("--install fake", 2, "fake needs no environment of its own: fake is installed"),
        ("--install tinny", 2, "did you mean 'tiny'?"),
        ("--install one --remove one", 2, "exclude each other"),
        ("--install amiga", 8, "has no package for"),
        ("--install worse", 8, "broken cannot be installed"),
    ],
)
def test_errors(command: str, code: int, says: str) -> None:
    result = invoke(f"engines {command}")
    assert result.exit_code == code
    assert says in " ".join(result.stderr.split())
