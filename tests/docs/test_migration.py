"""The migration pages: their scripts end in a verified file, and every isobit name in their tables is one."""

import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import isobit
from docs.test_docs import ROOT, blocks, run
from isobit.algorithms.training import Training
from isobit.observers import OBSERVERS
from isobit.quantizers import QUANTIZERS
from isobit.recipes import quant_modules
from isobit.recipes.methods import METHODS
from isobit.recipes.recipe import Recipe, recipe_of
from isobit.recipes.training import TrainingRecipe
from isobit.targets import TARGETS

PAGES = {path.stem: path for path in sorted((ROOT / "docs" / "migration").glob("*.md"))}
VALUES: dict[str, Any] = {
    "target": TARGETS, "method": METHODS, "weight_quantizer": QUANTIZERS, "activation_quantizer": QUANTIZERS,
    "weight_observer": OBSERVERS, "activation_observer": OBSERVERS,
}  # fmt: skip
KEYS = {
    f.name
    for kind in (Recipe, Training, TrainingRecipe, *QUANTIZERS.values(), *OBSERVERS.values())
    for f in fields(kind)  # type: ignore[arg-type]
} | {"bits"}


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    yield
    quant_modules.deactivate()


def test_there_is_a_page_for_each_tool() -> None:
    assert set(PAGES) == {"golden_stick_slb", "mqbench", "pytorch_quantization", "torchao_pt2e"}


@pytest.mark.parametrize("page", PAGES)
def test_the_script_of_a_page_ends_in_a_verified_file(page: str) -> None:
    pytest.importorskip("onnxruntime", reason="the pages verify on ONNX Runtime")
    pytest.importorskip("sklearn", reason="the pages train on scikit-learn's digits")
    found = run(f"docs/migration/{page}.md")
    proof = found["proof"]
    assert proof.verdict == "exact" or (proof.verdict == "bounded" and proof.float_islands), proof
    shares = [a.right / a.total for a in proof.accuracy if a.total]
    assert shares
    assert min(shares) > 0.9


@pytest.mark.parametrize("page", PAGES)
def test_a_page_has_its_parts(page: str) -> None:
    text = PAGES[page].read_text()
    assert re.findall(r"^## (.*)$", text, re.M)[1:] == ["Step by step", "Names", "Traps", "What isobit lacks"]
    assert len(blocks(f"docs/migration/{page}.md", "python")) == 1
    assert "github.com/" in text


@pytest.mark.parametrize("page", PAGES)
def test_names_of_isobit_exist(page: str) -> None:
    text = PAGES[page].read_text()
    for path in re.findall(r"`isobit\.([\w.]+)", text):
        found: Any = isobit
        for part in path.split("."):
            found = getattr(found, part)
    names = text.split("## Names\n")[1].split("\n## ")[0]
    ours = [row.split(" | ")[1] for row in names.splitlines() if row.startswith("| ") and row.count(" | ") >= 2]
    settings = [s for cell in ours for s in re.findall(r"`(\w+ = [^`]*)`", cell)]
    assert len(settings) > 5
    for setting in settings:
        key, value = setting.split(" = ", 1)
        assert key in KEYS, setting
        if key in VALUES and value.startswith('"'):
            assert value.strip('"') in VALUES[key], setting
    for preset in re.findall(r"`(recipes/presets/[\w*]+\.toml)`", text):
        assert list(ROOT.glob(preset)), preset


def test_tables_of_settings_on_the_pages_are_read() -> None:
    """`{ name = "percentile", percentile = 99.99 }` is TOML of a recipe."""
    import tomllib

    count = 0
    for page in PAGES.values():
        for line in re.findall(r"`((?:weight|activation)_\w+ = \{ [^`…]* \})`", page.read_text()):
            recipe_of(target="academic", **tomllib.loads(line)).post_training()
            count += 1
    assert count >= 2
