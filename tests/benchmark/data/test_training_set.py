"""Training batches: a function of seed and epoch, each image a window of the padded one, parts for processes."""

import pytest
import torch
from torch import Tensor

from isobit.benchmark.data.training_set import TrainingSet
from isobit.core.errors import CalibrationError, SettingError


def images(n: int = 10) -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    x = torch.randn(n, 3, 6, 6)
    return [(x[:4], torch.arange(4)), (x[4:], torch.arange(4, n))]


def test_the_same_epoch_is_the_same_and_the_next_is_not() -> None:
    data = TrainingSet(images(), batch_size=3, crop=2, mirror=True, seed=1)
    first, again, other = (torch.cat([x for x, _ in data.epoch(n)]) for n in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert data.steps == 3


def test_an_epoch_holds_each_sample_once() -> None:
    labels = torch.cat([y for _, y in TrainingSet(images(), batch_size=5).epoch(3)])
    assert sorted(labels.tolist()) == list(range(10))


def test_every_image_is_a_window_of_the_padded_one_or_its_mirror() -> None:
    data = TrainingSet(images(), batch_size=5, crop=1, mirror=True)
    black = data.x.amin((0, 2, 3))
    seen = set()
    for epoch in range(20):
        for x, y in data.epoch(epoch):
            for image, label in zip(x, y, strict=True):
                wide = black.reshape(3, 1, 1).expand(3, 8, 8).clone()
                wide[:, 1:-1, 1:-1] = data.x[label]
                windows = [(i, j, m) for i in range(3) for j in range(3) for m in (False, True)]
                fits = [
                    (i, j, m)
                    for i, j, m in windows
                    if torch.equal(wide[:, i : i + 6, j : j + 6].flip(2) if m else wide[:, i : i + 6, j : j + 6], image)
                ]
                assert fits
                seen.add(fits[0])
    assert len(seen) == 18


def test_processes_share_each_batch() -> None:
    data = TrainingSet(images(), batch_size=4, crop=1)
    whole = list(data.epoch(2))
    parts = [list(data.epoch(2, rank=r, ranks=2)) for r in range(2)]
    for (x, y), (x0, y0), (x1, y1) in zip(whole, *parts, strict=True):
        assert torch.equal(x[0::2], x0) and torch.equal(x[1::2], x1)
        assert torch.equal(y[0::2], y0) and torch.equal(y[1::2], y1)


def test_refusals() -> None:
    with pytest.raises(SettingError, match="from 1 to the 10 samples there are, got 11"):
        TrainingSet(images(), batch_size=11)
    with pytest.raises(CalibrationError, match="no labels"):
        TrainingSet([torch.randn(4, 3)], batch_size=2)
    with pytest.raises(SettingError, match="for images, not for samples"):
        TrainingSet([(torch.randn(4, 3), torch.arange(4))], batch_size=2, mirror=True)
