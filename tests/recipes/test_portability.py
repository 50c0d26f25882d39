"""One file on several engines: rows, agreement with the first, refusals, and the command."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner, Result

import isobit
from isobit.cli.app import app
from isobit.core.errors import EngineError, UnknownNameError
from isobit.core.litert_file import serialized
from isobit.core.portability import Portability
from isobit.engines import ENGINES, Fake
from isobit.export.litert import translate
from isobit.integer.files import load_qdq
from isobit.recipes.portability import portability
from zoo import small_networks

REAL = [name for name in ("onnxruntime", "litert", "litert-reference") if not ENGINES[name]().missing()]


@pytest.fixture(scope="module")
def data() -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(0)
    _, inputs = small_networks()["residual"]
    x = torch.randn(24, *inputs[0].shape[1:], generator=g)
    return [(x[:16], torch.arange(16) % 5), (x[16:], torch.arange(8) % 5)]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, data: list[tuple[Tensor, Tensor]]) -> Path:
    net, _ = small_networks()["residual"]
    path = tmp_path_factory.mktemp("portability") / "net.onnx"
    isobit.export(isobit.quantize(net, [data[0][0]], target="litert"), path)
    return path


@pytest.mark.skipif(len(REAL) < 3, reason="needs ONNX Runtime and LiteRT")
def test_every_engine_is_exact_and_compared_with_the_first(file: Path, data: list[tuple[Tensor, Tensor]]) -> None:
    found = portability(file, data=data, engines=REAL)
    assert [row.engine for row in found.rows] == REAL
    for row in found.rows:
        assert row.certificate is not None
        assert (row.certificate.verdict, row.samples, row.total) == ("exact", 24, 120)
        assert row.milliseconds is not None and row.milliseconds > 0
    outputs = {}
    for name in REAL[1:]:  # what the rows say of LiteRT, by hand
        path = file.with_suffix(".tflite")
        path.write_bytes(serialized(translate(load_qdq(file), {})))
        sessions = [ENGINES["onnxruntime"]().load(file), ENGINES[name]().load(path)]
        outputs[name] = [torch.cat([torch.from_numpy(s.run([x.numpy()])[0]) for x, _ in data]) for s in sessions]
        row = next(r for r in found.rows if r.engine == name)
        mine, theirs = outputs[name]
        assert row.equal == int(((mine - theirs).abs() < 1e-6).sum())
        assert row.same_class == int((mine.argmax(1) == theirs.argmax(1)).sum())
    assert found.rows[0].equal == 120
    right = [
        next(a.right for a in r.certificate.accuracy if a.execution == r.engine) for r in found.rows if r.certificate
    ]
    assert found.spread == pytest.approx(100 * (max(right) - min(right)) / 24)


def test_a_refusal_is_a_row_and_says_why(file: Path) -> None:
    class Refusing(Fake):
        def load(self, *_: object, **__: object) -> object:
            raise EngineError("this engine refuses everything")

    found = portability(file, engines={"fake": Fake(), "refusing": Refusing()})  # type: ignore[dict-item]
    assert found.rows[0].certificate is not None
    assert found.rows[1].refused == "this engine refuses everything"
    assert "refusing: refused: this engine refuses everything" in str(found)


def test_names_of_engines(file: Path) -> None:
    with pytest.raises(UnknownNameError, match="onnxruntime"):
        portability(file, engines=["onnxruntim"])


def test_without_labels_there_is_no_spread(file: Path) -> None:
    found = portability(file, engines=["fake"])
    assert isinstance(found, Portability)
    assert found.spread is None and found.rows[0].samples == 32


def test_on_the_command_line(file: Path) -> None:
    def run(*arguments: str) -> Result:
        return CliRunner().invoke(app, ["verify", str(file), *arguments])

    found = run("--engines", "fake")
    assert (found.exit_code, "as on fake" in found.stdout) == (0, True)
    rows = json.loads(run("--engines", "fake", "--json").stdout)["portability"]["rows"]
    assert [row["engine"] for row in rows] == ["fake"]
    both = run("--engines", "fake", "--engine", "fake")
    assert both.exit_code != 0
    assert "exclude each other" in both.stderr
