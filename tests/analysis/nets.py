"""Small quantized networks, and the state of a model as a value that can be compared."""

import copy
from functools import cache

import torch
from torch import Tensor, fx, nn

from isobit.graph.insert import slots
from isobit.recipes.workflow import quantize


def mlp(target: str = "onnxruntime-x86", *, bits: int | None = None) -> tuple[fx.GraphModule, Tensor]:
    """Linear, ReLU, linear, quantized with weights rounded to nearest, and the data it was calibrated on."""
    return copy.deepcopy(_mlp(target, bits))


@cache
def _mlp(target: str, bits: int | None) -> tuple[fx.GraphModule, Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4))
    x = torch.randn(64, 6)
    return quantize(net, [x], target=target, bits=bits, reconstruction="none"), x


class Branches(nn.Module):
    """A pool that moves integers, a residual add, a shared layer that is called twice, and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.relu = nn.ReLU()
        self.pool = nn.MaxPool2d(2)
        self.body = nn.Conv2d(8, 8, 3, padding=1)
        self.twice = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.pool(self.relu(self.stem(x)))
        x = x + self.body(x)
        x = self.twice(self.relu(self.twice(x)))
        return self.head(x.mean((2, 3))), x


def branches(target: str = "onnxruntime-x86") -> tuple[fx.GraphModule, Tensor]:
    """`Branches`, quantized, and the data it was calibrated on."""
    return copy.deepcopy(_branches(target))


@cache
def _branches(target: str) -> tuple[fx.GraphModule, Tensor]:
    torch.manual_seed(1)
    x = torch.randn(24, 3, 8, 8)
    return quantize(Branches(), [x], target=target), x


def state(model: nn.Module) -> list[object]:
    """Slot modes, training flags, parameters and buffers."""
    tensors = [(k, v.tolist()) for k, v in model.state_dict().items()]
    return [[s.mode for s in slots(model)], [m.training for m in model.modules()], tensors]
