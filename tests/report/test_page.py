"""The page as a document: whole, offline, complete, and safe against the names that it shows."""

import builtins
import json
import os
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from isobit.core.errors import MissingExtraError, OutputError, SettingError
from isobit.core.records import Certificate, Finding, Histogram, LayerRecord, RunRecord
from isobit.report import write_report
from isobit.report.island import island, merged, page_data
from isobit.report.page import render
from report import example

VOID = {"meta", "link", "input", "br", "img", "hr"}
SECTIONS = ("summary", "quantized", "measured", "layers", "certificate", "reproduction")


class Document(HTMLParser):
    """Checks that elements close in the order in which they opened, and keeps what a test asks for."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.scripts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes nothing at {self.getpos()}"

    def handle_data(self, data):
        if self.open[-1:] == ["script"]:
            self.scripts.append(data)
        elif self.open[-1:] != ["style"]:
            self.text += data

    def ids(self) -> list[str]:
        return [str(a["id"]) for _, a in self.elements if "id" in a]


@pytest.fixture(scope="module")
def text() -> str:
    return render((example.bounded(),))


@pytest.fixture(scope="module")
def document(text: str) -> Document:
    return Document(text)


def words(document: Document) -> str:
    return " ".join(document.text.split())


@pytest.mark.parametrize("runs", [(example.example(),), example.four(), (example.bare(),)], ids=["one", "four", "bare"])
def test_elements_balance_and_ids_are_unique(runs: tuple[RunRecord, ...]) -> None:
    ids = Document(render(runs)).ids()
    assert len(ids) == len(set(ids))
    assert [f"r{i}-{name}" for i in range(len(runs)) for name in SECTIONS] == [
        i for i in ids if re.match(r"r\d+-(\w+)$", i) and i.split("-")[1] in SECTIONS
    ]


def test_nothing_is_fetched(document: Document, text: str) -> None:
    addresses = [a[k] for _, a in document.elements for k in ("src", "href", "srcset", "action", "data") if k in a]
    assert addresses
    assert all(address is not None and address.startswith(("#", "data:,")) for address in addresses)
    assert "http://" not in text
    assert "https://" not in text
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest|WebSocket|import\(", text)
    policy = next(a["content"] for tag, a in document.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'")


def test_the_record_is_in_the_text(document: Document) -> None:
    run, seen = example.bounded(), words(document)
    certificate = run.certificates[0]
    for wanted in (
        run.title, run.target, run.target_source, "Bounded", certificate.cause, run.command, run.warnings[0],
        run.float_ops[0].reason, certificate.sha256, certificate.integers_sha256, certificate.instruction_set,
        "layer1.0.add", "2 steps", "4,998,712 of 5,000,000", "a formula that is not published",
        "QLinearConv", "2,400,111,222", "2,147,483,647", "32-bit accumulator", "16-bit pair sum", "avgpool",
        "69.58 %", "69.76 %", "−0.18", "2.68×", "11.8 ms", "4.41 ms", "46.8 MB", "3.95×", "3 min 14 s",
        "algorithms", "bias_correction", "29 quantized layers", "2.13.0", "2026.4.1",
    ):  # fmt: skip
        assert " ".join(wanted.split()) in seen, wanted


def test_every_layer_has_a_row_with_its_numbers(text: str) -> None:
    run = example.bounded()
    rows = re.findall(r'<tr data-i="(\d+)">(.*?)</tr>', text, re.S)
    assert [int(i) for i, _ in rows] == list(range(len(run.layers)))
    for (_, row), layer in zip(rows, run.layers, strict=True):
        assert layer.name in row
        assert layer.sqnr_db is not None
        assert f"{layer.sqnr_db:.1f}" in row
        assert f"{layer.cosine:.5f}" in row


def test_names_are_text_and_never_markup() -> None:
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&\u2028"
    certificate = replace(example.bounded().certificates[0], cause=evil, float_islands=(evil,), engine=evil)
    run = replace(
        example.example(),
        title=evil,
        network=evil,
        target=evil,
        target_source=evil,
        warnings=(evil,),
        recipe={evil: evil},
        versions={evil: evil},
        command=evil,
        layers=(LayerRecord(name=evil, op=evil),),
        certificates=(certificate,),
    )
    text = render((run, run))
    document = Document(text)
    scripts = [a for tag, a in document.elements if tag == "script"]
    assert len(scripts) == 2
    assert not [a for tag, a in document.elements if tag == "img" or "onerror" in a]
    assert "alert(1)</script>" not in text
    assert json.loads(document.scripts[0])[0]["layers"][0]["name"] == evil


def test_island_holds_the_page_data_exactly(document: Document) -> None:
    run = example.bounded()
    assert json.loads(document.scripts[0]) == page_data([run])
    assert not set("<>&\u2028\u2029") & set(island([run]))
    layer = page_data([run])[0]["layers"][1]
    weight = run.layers[1].tensors[0]
    assert layer["tensors"][0]["scale"]["count"] == 64
    assert layer["tensors"][0]["scale"]["high"] == pytest.approx(max(weight.scale), rel=1e-5)
    assert weight.histogram is not None
    assert sum(layer["tensors"][0]["histogram"]["counts"]) == sum(weight.histogram.counts)


def test_merged_histograms_keep_every_count_where_it_was() -> None:
    fine = Histogram(low=-3.0, high=5.0, counts=tuple(range(1000)))
    coarse = merged(fine, bins=192)
    step = 6
    assert len(coarse.counts) == 167
    assert coarse.counts == tuple(sum(range(i, min(i + step, 1000))) for i in range(0, 1000, step))
    width = (coarse.high - coarse.low) / len(coarse.counts)
    assert width == pytest.approx(step * 8.0 / 1000)


def test_values_that_json_has_no_number_for() -> None:
    layer = LayerRecord(name="same", op="conv2d", sqnr_db=float("inf"), cosine=float("nan"), isolated_db=-float("inf"))
    run = replace(example.bare(), layers=(layer,))
    shown = json.loads(Document(render((run,))).scripts[0])[0]["layers"][0]
    assert (shown["sqnr"], shown["cosine"], shown["isolated"]) == ("∞", "NaN", "−∞")


def test_what_was_not_measured_is_said() -> None:
    seen = words(Document(render((example.bare(),))))
    for reason in (
        "no labels were given", "no engine was timed", "no file sizes", "operations were not counted",
        "the exported file was not run on an engine and compared", "Not verified", "no source given",
        "the recipe is empty", "the run was started from Python", "no op was left in float",
    ):  # fmt: skip
        assert reason in seen, reason
    empty = replace(example.bare(), layers=())
    assert "no layer was quantized or analysed" in words(Document(render((empty,))))


def test_an_empty_certificate_is_drawn() -> None:
    certificate = Certificate(
        file="", sha256="", target="t", engine="fake", engine_version="", instruction_set="", samples=0, verdict="exact"
    )
    seen = words(Document(render((replace(example.bare(), certificates=(certificate,)),))))
    assert "no two executions were compared" in seen
    assert "the engine does not say which kernels it ran" in seen


def test_findings_are_listed_and_float_sums_are_no_proof() -> None:
    ops = tuple(f"conv{i}" for i in range(15))
    finding = Finding(problem="activations are <signed>", remedy="use unsigned bytes", ops=ops)
    certificate = replace(example.example().certificates[0], findings=(finding,), accumulators=0)
    run = replace(example.bare(), findings=(finding,))
    for runs in (replace(example.bare(), certificates=(certificate,)), run):
        seen = words(Document(render((runs,))))
        assert "activations are <signed>. To change: use unsigned bytes." in seen
        assert "conv11 and 3 more" in seen and "conv12" not in seen
        assert ("no integer accumulators exist" in seen) == bool(runs.certificates)


def test_several_runs_are_compared_and_can_be_chosen() -> None:
    runs = example.four()
    document = Document(render(runs))
    seen = words(document)
    assert "4 runs side by side" in seen
    options = [a["value"] for tag, a in document.elements if tag == "option" and str(a.get("value")).isdigit()]
    assert options == ["0", "1", "2", "3"]
    assert [a["data-go"] for _, a in document.elements if "data-go" in a] == options
    assert [word in seen for word in ("Exact", "Bounded", "Broken")] == [True] * 3
    assert "65.48 %" in seen
    assert "side by side" not in words(Document(render(runs[:1])))


def test_write_report_gives_the_path_and_the_page(tmp_path: Path) -> None:
    path = write_report(example.example(), str(tmp_path / "report.html"))
    assert path == tmp_path / "report.html"
    assert path.read_text(encoding="utf-8") == render((example.example(),))
    assert list(tmp_path.iterdir()) == [path]


def test_a_large_network_stays_small(tmp_path: Path) -> None:
    run = example.example(blocks=(3, 40, 60, 20), bins=2048)
    assert len(run.layers) == 374
    assert write_report(run, tmp_path / "r.html").stat().st_size < 2_000_000


def test_no_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="no run record"):
        write_report([], tmp_path / "report.html")


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="there is no folder"):
        write_report(example.bare(), tmp_path / "missing" / "report.html")
    with pytest.raises(OutputError, match="it is a folder"):
        write_report(example.bare(), tmp_path)


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="POSIX permissions are needed")
def test_a_read_only_folder(tmp_path: Path) -> None:
    old = tmp_path / "report.html"
    old.write_text("old")
    tmp_path.chmod(0o555)
    user = os.geteuid()
    if user == 0:  # permissions do not bind root
        os.seteuid(65534)
    try:
        with pytest.raises(OutputError, match="read-only"):
            write_report(example.bare(), old)
    finally:
        os.seteuid(user)
        tmp_path.chmod(0o755)
    assert old.read_text() == "old"


def test_without_jinja(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def absent(name, *args, **kwargs):
        if name == "jinja2":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(MissingExtraError, match=r"isobit\[report\]"):
        write_report(example.bare(), tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []
