"""`isobit quantize` without data: the options, what the table says, and what is refused."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from isobit.cli.app import app

NETWORK = "quantize nets.py:net -t onnxruntime-x86 --no-verify"


def invoke(command: str) -> Result:
    return CliRunner().invoke(app, command.split())


@pytest.mark.parametrize("data", ["none", "dead-leaves"])
def test_quantizing_without_data(here: Path, data: str) -> None:
    result = invoke(f"{NETWORK} -d {data} --input-shape 3,8,8 --normalize tf -o net.onnx --json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (here / "net.onnx").exists()
    assert found["calibration"].startswith("no data" if data == "none" else "64 samples made by dead-leaves")
    assert any("without data" in note for note in found["notes"]) == (data == "none")


def test_the_same_file_each_time(here: Path) -> None:
    hashes = {
        json.loads(invoke(f"{NETWORK} -d none --input-shape 3,8,8 --json").stdout)["integers_sha256"] for _ in "ab"
    }
    assert len(hashes) == 1


def test_few_samples_are_in_the_table(here: Path) -> None:
    result = invoke(f"{NETWORK} -d data.py:good")
    assert result.exit_code == 0, result.output
    assert "calibrated on 32 samples" in " ".join(result.stdout.split())


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ("-d none", "--input-shape has to be"),
        ("-d none --input-shape 3,x,8", "--input-shape has to be"),
        ("-d none --input-shape 3,0,8", "--input-shape has to be"),
        ("-d zeroq", "--input-shape has to be"),
        ("-d data.py:good --input-shape 3,8,8", "--input-shape is for data that are made"),
        ("-d none --input-shape 3,8,8 --balance", "leave it out"),
        ("-d none --input-shape 4,8,8", "4, 8, 8"),
        ("-d dead-leaf --input-shape 3,8,8", "is for data that are made"),
    ],
)
def test_what_is_refused(here: Path, options: str, text: str) -> None:
    result = invoke(f"{NETWORK} {options}")
    assert 2 <= result.exit_code <= 4
    assert text in " ".join(result.stderr.split())


def test_balanced_draws(here: Path) -> None:
    result = invoke(f"{NETWORK} -d data.py:good --balance -n 16 --json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["calibration"].startswith("16 samples, equally of each domain")
