"""`isobit latency`: the table of files, the table of layers, and what is refused."""

import json
from pathlib import Path

import pytest

from cli.bad_input import invoke
from isobit.engines import LiteRt, OnnxRuntime

needs_onnxruntime = pytest.mark.skipif(bool(OnnxRuntime().missing()), reason=OnnxRuntime().missing())
FILES = "latency exported.onnx --model nets.py:net --engines fake --runs 2"
LAYERS = "latency --layers --model nets.py:net -d data.py:good -t onnxruntime-x86 --runs 2 --cache times.json"


@pytest.fixture
def exported(here: Path) -> Path:
    result = invoke("quantize nets.py:net -d data.py:good -t onnxruntime-x86 -o exported.onnx --no-verify")
    assert result.exit_code == 0, result.stderr
    return here


def test_files_and_the_float_file_of_a_network(exported: Path) -> None:
    result = invoke(f"{FILES} --batch 1,3 --json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)["latency"]
    assert [(r["file"], r["batch"]) for r in found] == [
        ("nets.py:net in float", 1), ("exported.onnx", 1), ("nets.py:net in float", 3), ("exported.onnx", 3),
    ]  # fmt: skip
    for row in found:
        assert row["throughput"] == pytest.approx(1e3 * row["batch"] / row["median_ms"])
        assert row["median_ms"] <= row["p99_ms"]
    assert [r["speedup"] for r in found[::2]] == [1, 1]
    assert found[1]["speedup"] == pytest.approx(found[0]["median_ms"] / found[1]["median_ms"])
    shown = invoke(FILES).stdout
    assert "samples/s" in shown and "nets.py" in shown and "2 runs in turns" in shown


@needs_onnxruntime
@pytest.mark.skipif(bool(LiteRt().missing()), reason=LiteRt().missing())
def test_an_onnx_file_on_litert_and_a_litert_file_elsewhere(exported: Path) -> None:
    (exported / "bad.tflite").write_bytes(b"no flatbuffer")
    assert invoke("latency bad.tflite").exit_code == 6
    result = invoke("latency exported.onnx --engines litert,onnxruntime --runs 2 --batch 1 --json")
    found = json.loads(result.stdout)["latency"]
    assert [(r["engine"], r["refused"]) for r in found] == [("litert", ""), ("onnxruntime", "")]
    assert all(r["median_ms"] > 0 for r in found)


def test_layers_are_measured_once_and_add_up(exported: Path) -> None:
    result = invoke(f"{LAYERS} --engines fake --bits 8 --bits 4,8 --json")
    assert result.exit_code == 0, result.stderr
    (table,) = json.loads(result.stdout)["tables"]
    assert [(n["weight_bits"], n["activation_bits"]) for n in table["network"]] == [(8, 8), (4, 8), (32, 32)]
    for n in table["network"]:
        own = [t["ms"] for r in table["layers"] for t in r["times"] if t["weight_bits"] == n["weight_bits"]]
        assert sum(own) == pytest.approx(n["layers_ms"])
    shown = invoke(f"{LAYERS} --engines fake --bits 8 --bits 4,8").stdout
    times = sum(len(r["times"]) for r in table["layers"])
    assert f"{times} of {times} times are of equal layers or were kept" in " ".join(shown.split())
    assert "sum / network" in shown and "W4A8" in shown and "Conv 3 × 3, 3 → 8" in shown
    assert "f: fake runs it in float; at W8A8: Conv" in " ".join(shown.split())


@pytest.mark.parametrize(
    ("command", "code", "says"),
    [
        ("latency", 2, "name the files to measure"),
        ("latency nowhere.onnx", 6, "there is no file nowhere.onnx"),
        ("latency good.toml", 6, "not an ONNX file"),
        ("latency exported.onnx --engines opvino", 2, "did you mean 'openvino'"),
        ("latency exported.onnx --engines fake --batch 1,x", 2, "--batch is one or several whole numbers"),
        ("latency exported.onnx --engines fake --threads 2", 2, "fake has one thread"),
        ("latency exported.onnx --threads 0", 2, "--threads is a whole number"),
        ("latency exported.onnx --threads 2 --clock cpu", 2, "--clock cpu adds"),
        ("latency exported.onnx --engines fake --runs 0", 2, "at least 1 run"),
        ("latency exported.onnx --bits 8", 2, "--bits is of use with --layers"),
        ("latency --layers", 2, "--layers needs --model"),
        (f"{LAYERS} exported.onnx", 2, "leave the files out"),
        (f"{LAYERS} --engines fake --bits 8,8,8", 2, "--bits is one width"),
        (f"{LAYERS} --engines fake --bits 99", 2, "1 to 16 bits"),
        ("latency --layers --model nets.py:net -d data.py:good -t snpe --cache good.toml", 6, "no cache of latencies"),
    ],
)
def test_what_is_refused(exported: Path, command: str, code: int, says: str) -> None:
    result = invoke(command)
    assert (result.exit_code, says in result.stderr) == (code, True), result.stderr
