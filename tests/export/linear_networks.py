"""Networks of linear layers for the low-bit forms, and numpy's own reading of what a file holds."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, fx, nn

import isobit
from isobit.core.qparams import QParams
from isobit.graph.slots import weight_slot
from isobit.targets import TARGETS, Profile


class Branches(nn.Module):
    """Two layers that read one tensor, of which one has no bias; a layer of three dimensions follows."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(64, 96), nn.Linear(64, 96, bias=False)
        self.last = nn.Linear(96, 20)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.left(x)) * self.right(x))


def branches() -> tuple[nn.Module, Tensor]:
    """The network and an input of three dimensions."""
    torch.manual_seed(0)
    return Branches().eval(), torch.randn(6, 5, 64)


def quantized(path: Path, target: str, **settings: Any) -> tuple[fx.GraphModule, Tensor, onnx.ModelProto]:
    """The quantized network, its input and its file."""
    net, x = branches()
    model = isobit.quantize(net, [x], target=target, **settings)
    isobit.export(model, path)
    return model, x, onnx.load(path)


@contextmanager
def another(target: str, **fields: Any) -> Iterator[str]:
    """A target with other fields, in the table meanwhile."""
    profile: Profile = replace(TARGETS[target], name="another", **fields)
    TARGETS["another"] = profile
    try:
        yield "another"
    finally:
        del TARGETS["another"]


def weights_of(model: fx.GraphModule) -> dict[str, np.ndarray]:
    """Each layer's weight on its grid, from the quantizers alone."""
    found = {}
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear) and (slot := weight_slot(layer)) is not None:
            grid = slot.grid()
            assert isinstance(grid, QParams)
            found[name] = grid.dequantize(grid.quantize(layer.weight.detach())).numpy()
    return found


def constants(file: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """The initializers by name."""
    return {t.name: t for t in file.graph.initializer}


def from_bits(raw: bytes, bits: int) -> np.ndarray:
    """Unsigned integers of `bits` bits out of bytes, lowest bits first: by a string of binary digits."""
    digits = "".join(f"{byte:08b}"[::-1] for byte in raw)
    return np.array([int(digits[i : i + bits][::-1], 2) for i in range(0, len(digits), bits)])
