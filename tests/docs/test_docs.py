"""The code of README and docs runs; what the pages about adding things add goes through its contract suite."""

import inspect
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.main import get_command

from isobit.algorithms import RECONSTRUCTIONS
from isobit.algorithms.post_training import PostTraining
from isobit.engines import ENGINES
from isobit.export import EXPORTERS, READERS
from isobit.graph.capture import capture
from isobit.graph.passes import PASSES
from isobit.observers import OBSERVERS
from isobit.quantizers import QUANTIZERS
from isobit.targets import TARGETS
from zoo import small_networks

ROOT = Path(__file__).parents[2]
GUIDES = ("tutorial", "training", "ranges", "repair", "without_data", "exporting", "latency", "pt2e")
PAGES = ("README.md", *(f"docs/{guide}.md" for guide in GUIDES))
ADDING = ("quantizer", "observer", "target", "engine", "pass", "algorithm", "format")
TABLES = (QUANTIZERS, OBSERVERS, TARGETS, ENGINES, PASSES, RECONSTRUCTIONS, EXPORTERS, READERS)


def blocks(page: str, *languages: str) -> list[str]:
    """The fenced blocks of a page in these languages."""
    text = (ROOT / page).read_text()
    return [m[2] for m in re.finditer(r"^```(\w+)\n(.*?)^```$", text, re.M | re.S) if m[1] in languages]


def run(page: str) -> dict[str, Any]:
    """Run all Python blocks of a page in one namespace, which is that of a module: dataclasses look theirs up."""
    module = ModuleType(f"page_{Path(page).stem}")
    sys.modules[module.__name__] = module
    for number, code in enumerate(blocks(page, "python"), start=1):
        exec(compile(code, f"{page}, block {number}", "exec"), module.__dict__)
    return module.__dict__


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterable[None]:
    """Pages write files, and add to tables."""
    monkeypatch.chdir(tmp_path)
    before = [dict(table) for table in TABLES]
    yield
    for table, entries in zip(TABLES, before, strict=True):
        table.clear()
        table.update(entries)


@pytest.mark.parametrize("page", PAGES)
def test_the_code_of_a_page_runs(page: str) -> None:
    pytest.importorskip("onnxruntime", reason="the pages verify on ONNX Runtime")
    pytest.importorskip("sklearn", reason="the tutorial trains on scikit-learn's digits")
    assert run(page)


def through(suite: ModuleType, skip: tuple[str, ...] = (), /, **given: Any) -> int:
    """Call every test function of a contract suite that these arguments satisfy; count them."""
    done = 0
    for name, test in inspect.getmembers(suite, inspect.isfunction):
        wanted = list(inspect.signature(test).parameters)
        if not name.startswith("test_") or name in skip or not set(wanted) & {"name", "engine", "profile"}:
            continue
        for arguments in _cases(test, wanted, given):
            try:
                test(**arguments)
            except pytest.skip.Exception:
                continue
            done += 1
    return done


def _cases(test: Callable[..., Any], wanted: list[str], given: dict[str, Any]) -> list[dict[str, Any]]:
    """The arguments of each case of a parametrized test, where `given` replaces the parameters of its names."""
    cases = [{k: v for k, v in given.items() if k in wanted}]
    for mark in getattr(test, "pytestmark", []):
        names = [n.strip() for n in mark.args[0].split(",")] if isinstance(mark.args[0], str) else list(mark.args[0])
        if mark.name != "parametrize" or set(names) & given.keys():
            continue
        values = [v if len(names) > 1 else (v,) for v in mark.args[1]]
        cases = [case | dict(zip(names, value, strict=True)) for case in cases for value in values]
    return [case for case in cases if set(case) == set(wanted)]


def test_adding_a_quantizer() -> None:
    from contracts import test_quantizers as suite

    run("docs/adding/quantizer.md")
    assert through(suite, name="shrunk") >= 7


def test_adding_an_observer(monkeypatch: pytest.MonkeyPatch) -> None:
    from contracts import test_observers as suite
    from observers.references import CHECKS

    monkeypatch.setitem(CHECKS, "headroom", run("docs/adding/observer.md")["check_headroom"])
    assert through(suite, ("test_clips_one_outlier",), name="headroom") > 50


def test_adding_a_target() -> None:
    from contracts import test_targets as suite

    profile = run("docs/adding/target.md")["PROFILE"]
    suite.check_kinds(profile)
    suite.check_schemes(profile)
    suite.test_it_says_who_it_is_and_where_that_is_known_from(profile)


def test_adding_an_engine(tmp_path: Path) -> None:
    from contracts import test_engines as suite

    engine = run("docs/adding/engine.md")["IntegerEngine"]()
    network = suite.small_network().save(tmp_path / "network.onnx")
    assert through(suite, engine=engine, network=network, tmp_path=tmp_path) >= 8


def test_adding_an_algorithm() -> None:
    from contracts import test_algorithms as suite

    algorithm = PostTraining(reconstruction=run("docs/adding/algorithm.md")["MixedAdaRound"](iterations=40))
    profile = TARGETS["onnxruntime-x86"].with_bits(weight=4, activation=4)
    suite.check_not_worse(algorithm, profile)
    suite.check_repeatable(algorithm, "residual", profile)


def test_adding_a_format(tmp_path: Path) -> None:
    from contracts.test_exporters import check_exporter
    from vendor import quantized, simulated_weights

    exporter = run("docs/adding/format.md")["acme"]()
    found = quantized("residual", "tensorrt")
    path = tmp_path / "here" / "net.onnx"
    path.parent.mkdir()
    check_exporter(exporter, found.model, found.inputs, path)
    read, expected = exporter.read_back(path), simulated_weights(found.model)
    assert read.integers.keys() == expected.keys()
    assert all((read.integers[name] == k).all() for name, k in expected.items())


def test_adding_a_pass() -> None:
    from contracts import test_passes as suite

    settings = run("docs/adding/pass.md")["RemoveDropout"]()
    for net, inputs in small_networks().values():
        suite.check_pass(settings, capture(net, inputs, check=False), inputs)


@pytest.mark.parametrize(
    "page", [*PAGES, "CONTRIBUTING.md", "docs/referee.md", *(f"docs/adding/{a}.md" for a in ADDING)]
)
def test_commands_on_a_page_exist(page: str) -> None:
    """Each line that starts with isobit or make names a command or target, and options, that exist."""
    from isobit.cli.app import app

    commands = get_command(app).commands  # type: ignore[attr-defined]
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M)
    for block in blocks(page, "console", "bash"):
        for line in re.sub(r"\\\n", " ", block).splitlines():
            words = line.removeprefix("$ ").split("#")[0].split()
            if words[:1] == ["make"] and len(words) > 1:
                assert words[1] in targets, line
            if words[:1] == ["isobit"] and not words[1].startswith("-"):
                known = {o for p in commands[words[1]].params for o in (*p.opts, *p.secondary_opts)}
                assert {w for w in words[2:] if w.startswith("-")} <= known | {"--help"}, line


def test_links_between_pages_lead_somewhere() -> None:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    broken = [
        f"{page.name}: {target}"
        for page in pages
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text())
        if "://" not in target and not (page.parent / target).exists()
    ]
    assert not broken


def test_readme_lists_every_target() -> None:
    text = (ROOT / "README.md").read_text()
    assert [name for name in TARGETS if f"| `{name}` |" not in text] == []
