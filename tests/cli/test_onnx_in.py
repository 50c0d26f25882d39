"""A float ONNX file in the place of a network."""

import json
from pathlib import Path

import onnx
import pytest
import torch

import isobit
from cli.bad_input import invoke
from graph.from_onnx.exported import export
from isobit.cli.loading import load_model

OPTIONS = "-d data.py:good -t onnxruntime-x86"


def test_a_file_gives_the_integers_of_its_network(here: Path) -> None:
    of_file, of_network = (
        json.loads(invoke(f"quantize {model} {OPTIONS} --json").stdout) for model in ("float.onnx", "nets.py:net")
    )
    assert of_file["certificate"]["verdict"] == of_network["certificate"]["verdict"]
    assert of_file["accuracy"] == of_network["accuracy"]
    assert of_file["float_bytes"] > 0
    data = [x for x, _ in load_batches()]
    weights = []
    for net in (load_model("float.onnx"), load_model("nets.py:net")):
        state = isobit.quantize(net, data, target="onnxruntime-x86").state_dict()
        weights.append({k: v for k, v in state.items() if k.endswith("weight")})
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])


def load_batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    space: dict[str, object] = {}
    exec(Path("data.py").read_text(), space)
    return space["good"]()  # type: ignore[operator,no-any-return]


def test_what_is_written_can_be_verified_again(here: Path) -> None:
    assert invoke(f"quantize float.onnx {OPTIONS} -o out.onnx --report run.html").exit_code == 0
    assert "float.onnx" in (here / "run.html").read_text()
    result = invoke("verify out.onnx -d data.py:good --model float.onnx --calibration data.py:good")
    assert result.exit_code == 0, result.stderr
    assert "EXACT" in result.stdout


def test_analyze_takes_float_files_and_judges_quantized_ones(here: Path) -> None:
    layers = json.loads(invoke(f"analyze float.onnx {OPTIONS} --json").stdout)["layers"]
    assert {"conv1", "conv2", "linear"} <= {layer["name"] for layer in layers}
    assert "in integers" in invoke("analyze net.onnx").stdout
    refused = invoke(f"analyze net.onnx {OPTIONS}")
    assert refused.exit_code == 2
    assert "it is judged as it is" in refused.stderr


def test_weights_are_loaded_over_those_of_the_file(here: Path) -> None:
    export(load_model("nets.py:other"), [torch.zeros(1, 3, 8, 8)], here / "other.onnx", exporter="unfolded")
    own, other = load_model("nets.py:net").state_dict(), load_model("other.onnx", Path("net.safetensors")).state_dict()
    assert all(torch.equal(own[k], other[k]) for k in own)


def test_a_note_about_the_file_is_printed(here: Path) -> None:
    file = onnx.load("float.onnx")
    for tensor in file.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            half = onnx.numpy_helper.to_array(tensor).astype("float16")
            tensor.CopyFrom(onnx.numpy_helper.from_array(half, tensor.name))
    for value in (*file.graph.input, *file.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    del file.graph.value_info[:]
    onnx.save(file, "half.onnx")
    result = invoke(f"quantize half.onnx {OPTIONS}")
    assert result.exit_code == 0, result.stderr
    assert "the file is in float16" in " ".join(result.stdout.split())


@pytest.mark.parametrize("command", ["quantize --help", "analyze --help"])
def test_help_names_files(command: str) -> None:
    assert "float ONNX file" in " ".join(invoke(command).stdout.split())
