"""A small task and networks for it: what the tests of training share."""

from collections.abc import Iterable

import torch
from torch import Tensor, fx, nn

import isobit
from isobit.algorithms.calibration import Observation, calibrate
from isobit.observers import MeanAbs


class Blobs:
    """Two classes that a small network tells apart, a function of the epoch; may die in the middle of one."""

    steps = 6

    def __init__(self, *, dies_in: int | None = None) -> None:
        self.dies_in = dies_in

    def epoch(self, number: int, *, rank: int = 0, ranks: int = 1) -> Iterable[tuple[Tensor, ...]]:
        generator = torch.Generator().manual_seed(number)
        for step in range(self.steps):
            if number == self.dies_in and step == 3:
                raise RuntimeError("killed")
            y = torch.randint(0, 2, (16,), generator=generator)
            x = torch.randn(16, 2, 6, 6, generator=generator) + y[:, None, None, None]
            yield x[rank::ranks], y[rank::ranks]


class Unlabelled(Blobs):
    """The images alone."""

    def epoch(self, number: int, *, rank: int = 0, ranks: int = 1) -> Iterable[tuple[Tensor, ...]]:
        for x, _ in super().epoch(number, rank=rank, ranks=ranks):
            yield (x,)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(16, 2),
    )  # fmt: skip


def evaluation() -> list[tuple[Tensor, ...]]:
    return list(Blobs().epoch(99))


def prepared(bn_fold: int | None = None, net: nn.Module | None = None, bits: int = 4) -> fx.GraphModule:
    x = next(iter(Blobs().epoch(0)))[0]
    model = isobit.prepare(net or network(), x, target="tensorrt", bits=bits, bn_fold=bn_fold, method="lsq")
    calibrate(model, [x], Observation(weight=MeanAbs(), activation=MeanAbs()))
    return model
