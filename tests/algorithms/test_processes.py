"""Two processes that train together on the CPU: equal to each other to the bit, to one process but for rounding."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from isobit.algorithms.training import Hardware, Training
from isobit.core.checkpoint import load_checkpoint
from isobit.core.errors import SettingError

pytest.importorskip("lightning", reason="Lightning is not installed")

from algorithms.two_processes import run


def together(folder: Path, method: str, **settings: Any) -> list[dict[str, Any]]:
    """What each of two processes ends with."""
    here = Path(__file__).parent
    command = [sys.executable, str(here / "two_processes.py"), str(folder), method, json.dumps(settings)]
    path = os.pathsep.join([str(here.parent), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    found = [json.loads((folder.parent / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    for record in found:
        del record["seconds"]
    return found


@pytest.mark.slow
def test_two_processes_agree_to_the_bit_and_with_one_but_for_rounding(tmp_path: Path) -> None:
    """Folded with synchronized statistics, with averages and a teacher."""
    settings: dict[str, Any] = {
        "epochs": 2, "learning_rate": 0.02, "ema_decay": 0.5, "feature_distillation": 0.1, "clip_norm": 5.0,
    }  # fmt: skip
    first, second = together(tmp_path / "two", "lsq", **settings)
    assert first == second
    assert {p.name for p in (tmp_path / "two").iterdir()} == {"last.safetensors", "best.safetensors", "metrics.csv"}
    _, alone = run(tmp_path / "one", "lsq", Training(**settings), 1)
    assert [e["loss"] for e in first["epochs"]] == pytest.approx([e.loss for e in alone.epochs], rel=1e-2)
    assert [e["right"] for e in first["epochs"]] == pytest.approx([e.right for e in alone.epochs], abs=2)
    states = [load_checkpoint(tmp_path / name / "last.safetensors")["state_dict"] for name in ("one", "two")]
    for key, value in states[0].items():
        if value.is_floating_point():
            assert (states[1][key] - value).norm() <= 0.1 * value.norm() + 1e-6, key


@pytest.mark.slow
def test_a_checkpoint_fits_other_hardware(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"epochs": 2, "learning_rate": 0.02}
    _, alone = run(tmp_path / "run", "lsq", Training(**settings), 1)
    first, second = together(tmp_path / "run", "lsq", **settings)  # there is nothing left to do
    assert first == second
    assert first["epochs"][1]["loss"] == alone.epochs[1].loss


@pytest.mark.slow
def test_parameters_that_are_left_behind_do_not_stop_two_processes(tmp_path: Path) -> None:
    first, second = together(tmp_path / "two", "slb", epochs=3, learning_rate=0.02)
    assert first == second
    assert len(first["epochs"]) == 3


@pytest.mark.slow
def test_both_stop_where_the_loss_is_lost(tmp_path: Path) -> None:
    first, second = together(tmp_path / "two", "lsq", epochs=4, learning_rate=1e6)
    assert first == second
    assert "loss" in first["not_converged"]


@pytest.mark.parametrize(
    ("hardware", "says"),
    [({"devices": 0}, "devices has to be at least 1, got 0"), ({"nodes": -1}, "nodes has to be at least 1, got -1")],
)
def test_hardware_that_makes_no_sense(hardware: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingError, match=says):
        Hardware(**hardware)
