"""Choosing samples against slices of a plain list; where the data lies; the digits."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from isobit.benchmark.data import Dataset, data_file, data_folder, read_digits
from isobit.core.errors import CalibrationError, MissingExtraError, SettingError


def numbers(samples: int, batch_size: int = 4) -> Dataset:
    return Dataset(lambda of: (torch.tensor(list(of)),), samples=samples, batch_size=batch_size, name="numbers")


def listed(data: Dataset) -> list[int]:
    return [i for (x,) in data for i in x.tolist()]


@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 7), st.integers(1, 50), st.integers(0, 39))
def test_choosing_is_slicing(samples: int, batch_size: int, step: int, take: int, skip: int) -> None:
    data, plain = numbers(samples, batch_size), list(range(samples))
    assert listed(data) == listed(data) == plain
    assert listed(data.every(step)) == plain[::step]
    assert listed(data.take(take)) == plain[:take]
    if skip < samples:
        assert listed(data.skip(skip).every(step)) == plain[skip::step]
    assert len(list(data)) == len(data)
    if step > 1 and samples > 1:
        rest = data.without(data.every(step))
        assert sorted(listed(rest) + plain[::step]) == plain


def test_only_the_batch_at_hand_is_read() -> None:
    read: list[int] = []

    def remember(of: object) -> tuple[torch.Tensor]:
        read.extend(of)
        return (torch.zeros(len(of)),)

    next(iter(Dataset(remember, samples=1000, batch_size=3)))
    assert read == [0, 1, 2]


def test_wrong_choices_are_refused() -> None:
    with pytest.raises(CalibrationError, match="numbers is empty"):
        numbers(4).skip(4)
    with pytest.raises(CalibrationError, match="numbers is empty"):
        numbers(0)
    with pytest.raises(SettingError, match=r"samples 0\.\.3, there is no sample 4"):
        numbers(4).select([1, 4])
    for wrong in (lambda d: d.every(0), lambda d: d.take(0), lambda d: d.skip(-1), lambda d: d.batched(0)):
        with pytest.raises(SettingError):
            wrong(numbers(4))


def test_the_folder_is_found_above_the_current_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ISOBIT_DATA", raising=False)
    here = tmp_path / "repository" / "src"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    with pytest.raises(CalibrationError, match="Set ISOBIT_DATA"):
        data_file("weights/net.safetensors")
    (tmp_path / "shared" / "data" / "weights").mkdir(parents=True)
    assert data_folder() == tmp_path / "shared" / "data"
    with pytest.raises(CalibrationError, match=r"there is no weights/net\.safetensors"):
        data_file("weights/net.safetensors")
    (tmp_path / "shared" / "data" / "weights" / "net.safetensors").touch()
    assert data_file("weights/net.safetensors").exists()


def test_the_variable_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shared" / "data").mkdir(parents=True)
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ISOBIT_DATA", str(tmp_path / "mine"))
    assert data_folder() == tmp_path / "mine"
    monkeypatch.setenv("ISOBIT_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(CalibrationError, match="which is not a folder"):
        data_folder()


def test_digits_are_scikit_learns_in_two_parts() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    bunch = datasets.load_digits()
    train, test = read_digits("train"), read_digits("test")
    assert (train.samples, test.samples) == (1347, 450)
    assert not set(train.indices) & set(test.indices)
    for data in (train, test):
        start = 0
        for x, y in data:
            chosen = list(data.indices[start : start + len(x)])
            assert np.array_equal(x.numpy()[:, 0] * 16, bunch.images[chosen])
            assert np.array_equal(y.numpy(), bunch.target[chosen])
            start += len(x)


def test_without_scikit_learn_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingExtraError, match=r"scikit-learn is not installed.*isobit\[demo\]"):
        read_digits("train")
