import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from analysis.nets import Branches, branches
from isobit.analysis.analyze import analyze
from isobit.core.errors import SettingError
from isobit.core.records import Accuracy, Certificate, RunRecord, from_json, to_json
from isobit.recipes.run import lost_share, record_run, versions

CERTIFICATE = Certificate(
    file="net.onnx",
    sha256="0",
    target="onnxruntime-x86",
    engine="onnxruntime",
    engine_version="onnxruntime 1",
    instruction_set="AVX2",
    samples=100,
    verdict="exact",
    accuracy=(
        Accuracy(execution="simulation", right=90, total=100),
        Accuracy(execution="onnxruntime", right=88, total=100),
    ),
)


def test_everything_is_in_it() -> None:
    model, x = branches()
    net = Branches()
    accuracy = (Accuracy(execution="float", right=95, total=100),)
    record = record_run(
        model, net=net, data=[x], certificates=[CERTIFICATE], accuracy=accuracy, command="isobit demo", seconds=100.0
    )
    assert (record.title, record.network, record.target) == (
        "Branches on onnxruntime-x86",
        "Branches",
        "onnxruntime-x86",
    )
    assert "measured on ONNX Runtime" in record.target_source
    assert (record.recipe["target"], record.seed, record.command) == ("onnxruntime-x86", 0, "isobit demo")
    assert (record.accuracy, record.certificates) == (accuracy, (CERTIFICATE,))
    assert record.layers == analyze(model, [x])
    assert record.float_bytes == 4 * sum(p.numel() for p in net.parameters())
    assert 0 < record.quantized_bytes < record.float_bytes / 2
    assert record.macs == 3 * 72 * 64 + 72 * 8 * 16 + 2 * 64 * 16 + 40
    assert record.bitops == record.macs * 64
    assert 100.0 < record.seconds < 160.0
    assert record.warnings[0].startswith("quantization costs 7.0% of the samples. Layers responsible")
    assert from_json(RunRecord, json.loads(json.dumps(to_json(record), allow_nan=False))) == record


def test_without_data_there_are_costs_alone() -> None:
    model, _ = branches()
    record = record_run(model, title="A title", network="net.py:net")
    assert (record.title, record.network) == ("A title", "net.py:net")
    assert all(layer.sqnr_db is None and layer.sensitivity is None for layer in record.layers)
    assert record.macs > 0
    assert record.float_bytes > record.quantized_bytes > 0


def test_no_isolated_errors_where_no_sample_is_spent_on_them() -> None:
    model, x = branches()
    record = record_run(model, data=[x], samples=0)
    assert all(layer.sensitivity is None and layer.sqnr_db is not None for layer in record.layers)


def test_what_accuracy_is_lost() -> None:
    rows = [Accuracy(execution="float", right=9, total=10), Accuracy(execution="simulation", right=8, total=10)]
    assert lost_share(rows) == pytest.approx(0.1)
    assert lost_share([*rows, Accuracy(execution="openvino", right=35, total=50)]) == pytest.approx(0.2)
    assert lost_share(rows[:1]) is None
    assert lost_share(rows[1:]) is None
    assert lost_share([rows[0], replace(rows[1], right=0, total=0)]) is None


def test_versions_name_what_decides_a_result() -> None:
    found = versions()
    assert found["torch"] == torch.__version__
    assert {"isobit", "python", "onnx"} <= found.keys()
    assert "fake" not in found


def test_a_float_network_is_refused() -> None:
    with pytest.raises(SettingError, match=r"isobit\.quantize"):
        record_run(torch.fx.symbolic_trace(nn.Linear(2, 2)))
