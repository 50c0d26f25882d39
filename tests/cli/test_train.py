"""`isobit train` and `isobit bench`: what they write, how a run goes on, and what they refuse."""

import json
from hashlib import sha256
from pathlib import Path

import pytest

import isobit
from cli.bad_input import invoke, without
from isobit.benchmark.data import read_digits
from isobit.core.files import write_text

pytest.importorskip("lightning", reason="Lightning is not installed")
pytest.importorskip("sklearn", reason="the digits come from scikit-learn")

FLOAT = """
network = "isobit.benchmark.models:DigitsResNet"
data = "digits:train"
evaluation = "digits:test"
batch_size = 64
{more}
[augmentation]
crop = 1
[training]
epochs = 2
learning_rate = {rate}
"""
QUANTIZATION = """
[quantization]
target = "onnxruntime-x86"
method = "lsq"
weight_bits = 4
activation_bits = 4
bn_fold = 4
"""


def recipe(path: Path, *, more: str = "", rate: float = 0.1, quantization: str = "") -> Path:
    write_text(path, FLOAT.format(more=more, rate=rate) + quantization)
    return path


def test_from_a_float_network_to_a_verified_file(tmp_path: Path) -> None:
    made = invoke(f"train {recipe(tmp_path / 'float.toml')} -o {tmp_path / 'float'} --json")
    assert made.exit_code == 0, made.stderr
    found = json.loads(made.stdout)
    assert found["last"] > 90
    assert len(found["epochs"]) == 2
    weights = tmp_path / "float" / "weights.safetensors"
    path = recipe(tmp_path / "lsq.toml", more=f'weights = "{weights}"', rate=0.02, quantization=QUANTIZATION)
    made = invoke(f"train {path} -o {tmp_path / 'lsq'} --json")
    assert made.exit_code == 0, made.stderr
    trained = json.loads(made.stdout)
    assert trained["last"] > 90
    assert json.loads((tmp_path / "lsq" / "record.json").read_text()) == {
        k: v for k, v in trained.items() if k != "format"
    }
    certificate = isobit.verify(tmp_path / "lsq" / "net.onnx", None, read_digits("test"))
    assert certificate.verdict == "exact"
    again = json.loads(invoke(f"train {path} -o {tmp_path / 'lsq'} --json").stdout)
    assert again["integers_sha256"] == trained["integers_sha256"]
    assert again["file_sha256"] == sha256((tmp_path / "lsq" / "net.onnx").read_bytes()).hexdigest()
    assert again["file_bytes"] == (tmp_path / "lsq" / "net.onnx").stat().st_size
    assert {"isobit", "torch", "lightning", "python"} <= again["versions"].keys()


def test_a_run_that_does_not_converge_has_a_code_of_its_own(tmp_path: Path) -> None:
    made = invoke(f"train {recipe(tmp_path / 'a.toml', rate=1e6)} -o {tmp_path / 'run'}")
    assert made.exit_code == 10
    assert "NC (not converged): the" in made.stdout


@pytest.mark.parametrize(
    ("old", "new", "code", "says"),
    [
        ("epochs = 2", "epoch = 2", 2, "unknown key in a.toml.training 'epoch': did you mean 'epochs'?"),
        ("bn_fold = 4", "bn_fld = 4", 2, "unknown key in a.toml.quantization 'bn_fld': did you mean 'bn_fold'?"),
        ('method = "lsq"', 'method = "lsqq"', 2, "unknown method 'lsqq': did you mean 'lsq'?"),
        ("weight_bits = 4", "weight_bits = 1", 5, "LSQ is not defined for 1 signed bit"),
        ('"digits:train"', '"digits:trian"', 2, "unknown data set 'digits:trian': did you mean 'digits:train'?"),
        ("batch_size = 64", "batch_size = 5000", 2, "batch_size has to be from 1 to the 1347 samples there are"),
    ],
)
def test_recipes_that_are_refused(old: str, new: str, code: int, says: str, tmp_path: Path) -> None:
    path = recipe(tmp_path / "a.toml", quantization=QUANTIZATION)
    text = path.read_text()
    assert old in text
    write_text(path, text.replace(old, new))
    result = invoke(f"train {path} -o {tmp_path / 'run'}")
    assert result.exit_code == code
    assert says in result.stderr


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        ("--accelerator cpux", 2, "Lightning cannot train on 1 cpux device: "),
        ("--accelerator tpu", 2, "Lightning cannot train on 1 tpu device: "),
        ("--devices 3", 2, "batch_size = 64 cannot be shared evenly by 3 processes"),
        ("--devices 0", 2, "devices has to be at least 1, got 0"),
        ("--epochs 0", 2, "epochs has to be at least 1, got 0"),
    ],
)
def test_options_that_are_refused(options: str, code: int, says: str, tmp_path: Path) -> None:
    result = invoke(f"train {recipe(tmp_path / 'a.toml')} -o {tmp_path / 'run'} {options}")
    assert result.exit_code == code
    assert says in result.stderr


def test_tensorboard_is_an_extra(tmp_path: Path) -> None:
    with without("tensorboard"):
        result = invoke(f"train {recipe(tmp_path / 'a.toml')} -o {tmp_path / 'run'} --tensorboard")
    assert result.exit_code == 8
    assert result.stderr == "error: TensorBoard is not installed. Install it with: pip install 'isobit[tensorboard]'\n"


def test_without_labels(tmp_path: Path) -> None:
    """PACT as post-training quantization: the float network teaches, on images alone."""
    made = invoke(f"train {recipe(tmp_path / 'float.toml')} -o {tmp_path / 'float'}")
    assert made.exit_code == 0, made.stderr
    images = tmp_path / "images.py"
    write_text(
        images,
        "from isobit.benchmark.data import read_digits\n\ndef batches():\n"
        "    return [x for x, _ in read_digits('train')]\n",
    )
    weights = f'weights = "{tmp_path / "float" / "weights.safetensors"}"'
    path = recipe(tmp_path / "pact.toml", more=weights, rate=0.005, quantization=QUANTIZATION)
    text = path.read_text().replace("digits:train", f"{images}:batches").replace('"lsq"', '"pact"')
    text = text.replace("bn_fold = 4", "bn_fold = -1").replace("onnxruntime-x86", "academic")
    write_text(path, text)
    refused = invoke(f"train {path} -o {tmp_path / 'refused'}")
    assert (refused.exit_code, "the training data has no labels" in refused.stderr) == (4, True)
    write_text(path, text.replace("[training]", "[training]\nlabels = false"))
    made = invoke(f"train {path} -o {tmp_path / 'pact'} --json")
    assert made.exit_code == 0, made.stderr
    assert json.loads(made.stdout)["last"] > 95


def test_a_matrix_of_one_run(tmp_path: Path) -> None:
    text = FLOAT.format(more="", rate=0.05).replace("[", "[recipe.")
    write_text(tmp_path / "m.toml", "[recipe]\n" + text.lstrip() + '[axes]\nmethod = ["lsq"]\nbits = [8]\n')
    result = invoke(f"bench {tmp_path / 'm.toml'} -o {tmp_path / 'runs'}")
    assert result.exit_code == 0, result.stderr
    assert "| lsq | W8A8 | academic | target's |" in result.stdout
    assert (tmp_path / "runs" / "table.md").read_text() == result.stdout
    assert invoke(f"bench {tmp_path / 'm.toml'} -o {tmp_path / 'runs'}").stdout == result.stdout
