"""What a file for each target of the table holds, and what the engines and the target's own arithmetic make of it."""

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, fx

import isobit
from isobit.core.arithmetic import Shift, ShortMultiplier
from isobit.core.granularity import PerGroup
from isobit.engines import ENGINES
from isobit.graph.convert import convert
from isobit.integer import Reference
from isobit.targets import TARGETS, MatMulNBits
from zoo import small_networks


@dataclass(frozen=True)
class Made:
    """A quantized network and its file."""

    deployed: fx.GraphModule
    inputs: tuple[Tensor, ...]
    path: Path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("targets")


@functools.cache
def made_once(target: str, folder: Path) -> Made:
    net, inputs = small_networks()["residual"]
    grouped = isinstance(TARGETS[target].weight.granularity, PerGroup)
    model = isobit.quantize(net, [(inputs,)], target=target, **({"group_size": 16} if grouped else {}))
    path = folder / f"{target}.onnx"
    isobit.export(model, path)
    return Made(convert(model), inputs, path)


@pytest.fixture(params=TARGETS)
def target(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def outputs(made: Made) -> np.ndarray:
    with torch.no_grad():
        y: np.ndarray = made.deployed(*made.inputs).numpy()
    return y


@pytest.mark.parametrize("engine", ["fake", "onnxruntime", "openvino"])
def test_engines_run_it(target: str, engine: str, folder: Path) -> None:
    """Within a few steps of the simulation; how equal it is, `verify` proves."""
    if engine not in TARGETS[target].engines and (engine != "fake" or isinstance(TARGETS[target].form, MatMulNBits)):
        return
    runner = ENGINES[engine]()
    if runner.missing():
        pytest.skip(runner.missing())
    made = made_once(target, folder)
    (y,) = runner.load(made.path).run([x.numpy() for x in made.inputs])
    expected = outputs(made)
    assert np.abs(y - expected).max() <= 0.05 * np.abs(expected).max()


def test_the_reference_with_its_own_arithmetic(target: str, folder: Path) -> None:
    """Integers alone, rounded as the target rounds: nearly all that QuantizeLinear writes as the simulation, and the
    rest one step beside it."""
    made = made_once(target, folder)
    numbers = [x.numpy() for x in made.inputs]
    found = Reference(made.path, TARGETS[target].arithmetic).run(numbers)
    literal = Reference(made.path).run(numbers)
    expected = outputs(made)
    # with shifts one sum in eight lies between two integers; factors of 11 bits are off by up to 1 in 2,000
    coarse = isinstance(TARGETS[target].arithmetic.requantize, (Shift, ShortMultiplier))
    assert np.abs(found.outputs[0] - expected).max() <= 0.05 * np.abs(expected).max()
    differences = [
        np.abs(q.astype(np.int64) - literal.integers[name].astype(np.int64)).reshape(-1)
        for name, q in found.integers.items()
    ]
    if differences:
        together = np.concatenate(differences)
        assert together.max() <= 2
        assert (together == 0).mean() > (0.75 if coarse else 0.99)
