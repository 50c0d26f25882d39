"""`isobit train` takes a float ONNX file for a network."""

import json
from pathlib import Path

import pytest
import torch

from cli.bad_input import invoke
from graph.from_onnx.exported import export
from isobit.benchmark.models import MODELS
from isobit.core.files import write_text

pytest.importorskip("lightning", reason="Lightning is not installed")
pytest.importorskip("sklearn", reason="the digits come from scikit-learn")

RECIPE = """
network = "{network}"
data = "digits:train"
evaluation = "digits:test"
batch_size = 64
[training]
epochs = 1
learning_rate = 0.05
[quantization]
target = "onnxruntime-x86"
method = "lsq"
bn_fold = 4
"""


def test_a_file_is_trained_and_verified(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = MODELS["digits_resnet"]().eval()
    path = export(net, [torch.randn(2, 1, 8, 8)], tmp_path / "float.onnx", exporter="unfolded")
    write_text(tmp_path / "recipe.toml", RECIPE.format(network=path))
    made = invoke(f"train {tmp_path / 'recipe.toml'} -o {tmp_path / 'run'} --json")
    assert made.exit_code == 0, made.stderr
    assert json.loads(made.stdout)["last"] > 50  # from random weights, in one epoch
    assert (tmp_path / "run" / "net.onnx").exists()
