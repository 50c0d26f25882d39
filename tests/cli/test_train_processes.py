"""`isobit train` in processes of its own: killed and started again, and two that train together."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cli.bad_input import invoke
from cli.processes import AT_SYNC, MAIN, start, stop_at
from isobit.core.files import write_text

pytest.importorskip("lightning", reason="Lightning is not installed")
pytest.importorskip("sklearn", reason="the digits come from scikit-learn")
pytestmark = pytest.mark.slow

FLOAT = """
network = "isobit.benchmark.models:DigitsResNet"
data = "digits:train"
evaluation = "digits:test"
batch_size = 64
[augmentation]
crop = 1
"""
QUANTIZED = """
[quantization]
target = "onnxruntime-x86"
method = "lsq"
weight_bits = 4
activation_bits = 4
bn_fold = 4
[training]
epochs = 3
learning_rate = 0.05
"""

AT_STEP = """
import pathlib, time
from isobit.benchmark.data.training_set import TrainingSet
whole = TrainingSet.epoch
def epoch(self, number, **processes):
    for step, batch in enumerate(whole(self, number, **processes)):
        if [number, step] == STOP:
            pathlib.Path("reached").touch()
            time.sleep(60)
        yield batch
TrainingSet.epoch = epoch
"""
"""The training waits in front of a step of an epoch, both from 0."""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory, with the recipe in it and the float weights that it starts from.

    One thread here as in the processes that are started: sums depend on the number of threads.
    """
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    write_text("float.toml", FLOAT + "[training]\nepochs = 2\nlearning_rate = 0.1\n")
    assert invoke("train float.toml -o float").exit_code == 0
    write_text("recipe.toml", 'weights = "float/weights.safetensors"\n' + FLOAT + QUANTIZED)
    yield tmp_path
    torch.set_num_threads(threads)


def kill_at(step: list[int]) -> None:
    """Start or go on with the run `killed`, and kill it as soon as it is there."""
    mark = Path("reached")
    mark.unlink(missing_ok=True)
    script = AT_STEP.replace("STOP", str(step)) + MAIN
    code, _, err = stop_at(start(script, "train", "recipe.toml", "-o", "killed"), mark, signal.SIGKILL)
    assert code == -signal.SIGKILL, err


def test_a_run_that_is_killed_ends_with_the_same_integers(place: Path) -> None:
    """In the middle of the first epoch, of the second, and while the checkpoint behind the third is written."""
    assert invoke("train recipe.toml -o whole").exit_code == 0
    want = json.loads(Path("whole/record.json").read_text())
    kill_at([0, 10])
    assert {p.name for p in Path("killed").iterdir()} == {"recipe.json"}
    kill_at([1, 7])
    assert len(Path("killed/metrics.csv").read_text().splitlines()) == 2
    syncs = AT_SYNC.replace("STOP", "3")  # recipe, metrics, best or last, last or nothing: all before the end
    process = start(syncs + MAIN, "train", "recipe.toml", "-o", "killed")
    code, _, err = stop_at(process, Path("sync-3"), signal.SIGKILL)
    assert code == -signal.SIGKILL, err
    assert not Path("killed/record.json").exists()
    assert any(p.name.endswith(".part") for p in Path("killed").iterdir())
    assert invoke("train recipe.toml -o killed").exit_code == 0
    got = json.loads(Path("killed/record.json").read_text())
    assert got["integers_sha256"] == want["integers_sha256"]
    assert got["epochs"] == want["epochs"]
    assert Path("killed/metrics.csv").read_text() == Path("whole/metrics.csv").read_text()


def test_two_processes_train_together_and_the_first_one_writes(place: Path) -> None:
    command = [sys.executable, "-m", "isobit", "train", "recipe.toml", "-o", "run", "--json"]
    command += ["--epochs", "2", "--accelerator", "cpu", "--devices", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)  # one object: the second process prints nothing
    assert found["recipe"]["hardware"] == {"accelerator": "cpu", "devices": 2, "nodes": 1, "strategy": "auto"}
    assert len(found["epochs"]) == 2 and found["last"] > 90
    names = {"best.safetensors", "last.safetensors", "metrics.csv", "net.onnx", "recipe.json", "record.json"}
    assert {p.name for p in Path("run").iterdir()} == names
    assert "Warning" not in done.stderr
    again = invoke("train recipe.toml -o run --epochs 2 --json")  # on one device, where nothing is left to do
    assert json.loads(again.stdout)["integers_sha256"] == found["integers_sha256"]


def test_two_processes_that_do_not_converge_end_as_one_does(place: Path) -> None:
    write_text("recipe.toml", Path("recipe.toml").read_text().replace("0.05", "1e6"))
    command = [sys.executable, "-m", "isobit", "train", "recipe.toml", "-o", "run"]
    command += ["--accelerator", "cpu", "--devices", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=300)
    assert done.returncode == 10, done.stderr
    assert "NC (not converged)" in done.stdout
    assert json.loads(Path("run/record.json").read_text())["not_converged"]
