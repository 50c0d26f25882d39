"""Curves for TensorBoard, read back with TensorBoard itself; and what is said where it is not installed."""

import warnings
from pathlib import Path

import pytest

from algorithms.blobs import Blobs, evaluation, prepared
from cli.bad_input import without
from isobit.core.errors import MissingExtraError
from isobit.graph.insert import slots

pytest.importorskip("lightning", reason="Lightning is not installed")

from isobit.algorithms.training import Training, train


def test_the_curves_of_an_interrupted_run_are_whole(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the packages that it brings along
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    settings = Training(epochs=8, learning_rate=0.02)
    with pytest.raises(RuntimeError, match="killed"):
        train(prepared(4), Blobs(dies_in=4), evaluation(), settings, folder=tmp_path, tensorboard=True)
    model = prepared(4)
    record = train(model, Blobs(), evaluation(), settings, folder=tmp_path, tensorboard=True)
    found = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [s.step for s in found.Scalars("loss")] == [20, 40]
    assert [s.step for s in found.Scalars("accuracy")] == [6 * e.number for e in record.epochs]
    assert [s.value for s in found.Scalars("accuracy")] == pytest.approx([e.accuracy for e in record.epochs])
    for slot in slots(model):
        assert found.Scalars(f"scale/{slot.point}")[-1].value == pytest.approx(float(slot.grid().scale.mean()))
    assert found.Scalars("learning_rate")[-1].value < 0.02


def test_the_curves_are_an_extra(tmp_path: Path) -> None:
    with without("tensorboard"), pytest.raises(MissingExtraError, match=r"pip install 'isobit\[tensorboard\]'"):
        train(prepared(), Blobs(), evaluation(), Training(), folder=tmp_path, tensorboard=True)
    assert not list(tmp_path.iterdir())
