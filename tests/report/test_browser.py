"""What the page's script does, in a real browser: sorting, filtering, choosing, switching, and no requests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from isobit.report import write_report
from report import browser as chromium
from report import example

pytestmark = pytest.mark.skipif(chromium.installed() is None, reason="no chromium or google-chrome on the PATH")
WATCH = "addEventListener('error', e => (window.failures ??= []).push(e.message))"
NUMBERS = """((run, column) => [...document.querySelectorAll(`#r${run} .layer-table tbody tr:not([hidden])`)]
  .map(row => parseFloat(row.cells[column].textContent.replace('−', '-'))))"""
NAMES = """[...document.querySelectorAll('#r0 .layer-table tbody tr:not([hidden]) .name')].map(c => c.textContent)"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[chromium.Browser]:
    opened = chromium.open_browser(str(tmp_path_factory.mktemp("profile")))
    opened.call("Page.addScriptToEvaluateOnNewDocument", source=WATCH)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(example.four(), tmp_path_factory.mktemp("page") / "report.html")


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("runs", [example.four(), (example.bounded(),), (example.bare(),)], ids=["four", "one", "bare"])
def test_it_fits_asks_for_nothing_and_never_fails(browser, tmp_path: Path, width: int, scheme: str, runs) -> None:
    path = write_report(runs, tmp_path / "report.html")
    asked = chromium.show(browser, path, width, scheme)
    assert [a for a in asked if not a.startswith("data:")] == [path.as_uri()]
    assert chromium.evaluate(browser, "[innerWidth, document.documentElement.scrollWidth]") == [width, width]
    assert chromium.evaluate(browser, "window.failures ?? []") == []
    background = chromium.evaluate(browser, "getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background[4:-1].split(","))) > 380) == (scheme == "light")


def test_sorting_and_filtering(browser, page: Path) -> None:
    chromium.show(browser, page, 1280, "light")
    head = "document.querySelector('#r0 th[data-sort={}] button').click()"
    for key, column, down in (
        ("sqnr", 6, False),
        ("cosine", 7, False),
        ("isolated", 8, False),
        ("sensitivity", 9, True),
    ):
        chromium.evaluate(browser, head.format(key))
        first = chromium.evaluate(browser, f"{NUMBERS}(0, {column})")
        assert first == sorted(first, reverse=down)
        chromium.evaluate(browser, head.format(key))
        assert chromium.evaluate(browser, f"{NUMBERS}(0, {column})") == sorted(first, reverse=not down)
    filtered = f"""(() => {{ const box = document.querySelector('#r0 .filter'); box.value = 'LAYER3';
        box.dispatchEvent(new Event('input')); return {NAMES}; }})()"""
    names = chromium.evaluate(browser, filtered)
    assert sorted(names) == sorted(x.name for x in example.four()[0].layers if "layer3" in x.name)
    assert chromium.evaluate(browser, "document.querySelectorAll('#r0 .overview .mark').length") == len(names)


def test_choosing_a_layer_draws_its_histograms(browser, page: Path) -> None:
    chromium.show(browser, page, 1280, "light")
    choose = "document.querySelectorAll('#r0 .pick')[3].click()"
    shown = """[document.querySelector('#r0 .detail h3').textContent,
        document.querySelectorAll('#r0 .tensor svg path').length]"""
    layer = example.four()[0].layers[3]
    chromium.evaluate(browser, choose)
    assert chromium.evaluate(browser, shown) == [layer.name, len(layer.tensors)]
    path = "document.querySelector('#r0 .tensor path').getAttribute('d')"
    before = chromium.evaluate(browser, path)
    chromium.evaluate(browser, "document.querySelector('#r0 .linear').click()")
    assert chromium.evaluate(browser, path) != before
    press = """(() => { const svg = document.querySelector('#r0 .overview');
        for (const key of ['Home', 'ArrowRight', 'Enter']) svg.dispatchEvent(new KeyboardEvent('keydown', {key}));
        return svg.getAttribute('aria-valuetext'); })()"""
    assert example.four()[0].layers[1].name in chromium.evaluate(browser, press)
    assert chromium.evaluate(browser, shown)[0] == example.four()[0].layers[1].name


def test_switching_runs_and_theme(browser, page: Path) -> None:
    chromium.show(browser, page, 1280, "light")
    visible = "[...document.querySelectorAll('article.run')].map(a => !a.hidden)"
    assert chromium.evaluate(browser, visible) == [True, False, False, False]
    chromium.evaluate(
        browser,
        "(s => { s.value = '2'; s.dispatchEvent(new Event('change')); })(document.getElementById('run-select'))",
    )
    assert chromium.evaluate(browser, visible) == [False, False, True, False]
    assert chromium.evaluate(browser, "document.querySelector('.bar nav a').hash") == "#r2-summary"
    color = "getComputedStyle(document.body).backgroundColor"
    before = chromium.evaluate(browser, color)
    chromium.evaluate(browser, "document.getElementById('theme').click()")
    assert chromium.evaluate(browser, color) != before
    chromium.evaluate(browser, "localStorage.clear()")
