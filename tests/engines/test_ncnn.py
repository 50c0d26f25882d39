"""ncnn, where its environment is installed, against the integer reference: bit by bit."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import isobit
from isobit.core.errors import EngineError
from isobit.core.records import Kernel
from isobit.engines import ENGINES
from isobit.recipes.portability import portability

ENGINE = ENGINES["ncnn"]()

pytestmark = pytest.mark.skipif(bool(ENGINE.missing()), reason=ENGINE.missing() or "installed")


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.down, self.last = nn.Conv2d(16, 32, 1, stride=2, bias=False), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.one(x))
        x = F.relu(x + self.two(x))
        return self.last(F.adaptive_avg_pool2d(F.relu6(self.down(x)), 1).flatten(1))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = isobit.quantize(Residual().eval(), [torch.randn(8, 3, 20, 20)], target="ncnn")
    return isobit.export(model, tmp_path_factory.mktemp("ncnn") / "net.param").path


def test_exact(path: Path) -> None:
    certificate = isobit.verify(path, data=[torch.randn(16, 3, 20, 20)])
    assert (certificate.engine, certificate.verdict) == ("ncnn", "exact")
    assert certificate.comparisons[0].total == 160
    assert {k.name: k.count for k in certificate.kernels if k.precision == "int8"} == {
        "Convolution": 3, "InnerProduct": 1
    }  # fmt: skip
    assert Kernel(name="BinaryOp", precision="float32", count=1) in certificate.kernels
    assert "add" in certificate.float_islands and "one" not in certificate.float_islands


def test_samples_do_not_depend_on_each_other(path: Path) -> None:
    session = ENGINE.load(path)
    x = np.random.default_rng(0).standard_normal((5, 3, 20, 20)).astype(np.float32)
    whole = session.run([x])[0]
    assert whole.shape == (5, 10) and whole.dtype == np.float32
    np.testing.assert_array_equal(whole, np.concatenate([session.run([x[i : i + 1]])[0] for i in range(5)]))
    with pytest.raises(EngineError, match=r"'x' has to have the shape batch × 3 × 20 × 20, got \(5, 3, 20, 19\)"):
        session.run([x[..., :19]])


def test_files_that_are_none(path: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="there is no file"):
        ENGINE.load(tmp_path / "net.param")
    (tmp_path / "net.param").write_bytes(path.read_bytes())
    (tmp_path / "net.bin").write_bytes(path.with_suffix(".bin").read_bytes()[:-8])
    with pytest.raises(EngineError, match="truncated"):
        ENGINE.load(tmp_path / "net.param")
    with pytest.raises(EngineError, match="ncnn has floats alone"):
        ENGINE.load(path, expose=["one"])


def test_an_onnx_file_of_the_target_is_translated(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = isobit.quantize(Residual().eval(), [torch.randn(8, 3, 20, 20)], target="ncnn")
    path = isobit.export(model, tmp_path / "net.onnx", format="onnx").path
    (row,) = portability(path, model, [torch.randn(4, 3, 20, 20)], engines=["ncnn"], runs=2).rows
    assert row.certificate is not None and row.certificate.verdict == "exact", row.refused
    assert row.milliseconds is not None and 0 < row.milliseconds < 1000
