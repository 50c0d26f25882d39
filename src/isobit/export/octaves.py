"""Logarithmic grids in files: 0 and ± 2^(k / steps) for whole k, of which a file states the largest value."""

from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor, fx, nn

from isobit.core.errors import UnsupportedError
from isobit.core.geometric import geometric_scale, indices
from isobit.core.grid import Geometric
from isobit.core.qparams import QParams
from isobit.core.scheme import Scheme
from isobit.graph.deployed import CodebookWeight, DeployedConv, DeployedLinear, IntegerWeight
from isobit.graph.deployed_activations import ActivationQuantizer, GeometricQuantizer, StoredGrid


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Octaves:
    """2^bits values of which the largest is 2^(parameter / steps): the format's one parameter.

    >>> Octaves(parameter=-8).clip
    0.7071067811865476
    """

    parameter: int
    bits: int = 8
    steps: int = 16

    @property
    def clip(self) -> float:
        """The largest value; that of a file is this one as a decimal number."""
        return float(2.0 ** (self.parameter / self.steps))

    def integers(self, x: np.ndarray) -> np.ndarray:
        """The index of each value's level, of all in ascending order: int32, of the shape of x."""
        grid = Geometric(self.steps)
        scale = geometric_scale(torch.tensor(self.clip, dtype=torch.float64), grid, self.bits).float()
        found: np.ndarray = indices(torch.from_numpy(np.array(x, np.float32)), scale, grid, self.bits).numpy()
        return found.astype(np.int32)


def octaves_of(scale: Tensor, grid: Geometric, bits: int) -> Octaves:
    """The grid whose smallest positive value is `scale`."""
    lowest = round(float(scale.double().log2()) * grid.steps)
    return Octaves(parameter=lowest + (1 << (bits - 1)) - 1, bits=bits, steps=grid.steps)


def octaves_up_to(x: np.ndarray) -> Octaves:
    """The grid that ends at the largest magnitude of x, rounded: what a tool gives to weights."""
    largest = float(np.abs(x).max())
    return Octaves(parameter=round(16 * float(np.log2(largest))) if largest > 0 else 0)


@final
class _FloatWeight(nn.Module):
    """A weight and its bias as they are."""

    def __init__(self, weight: CodebookWeight) -> None:
        super().__init__()
        self.register_buffer("w", weight.weight())
        self.register_buffer("b", weight.bias())

    def weight(self) -> Tensor:
        return self.get_buffer("w")

    def bias(self) -> Tensor:
        return self.get_buffer("b")


def take_logarithms(deployed: fx.GraphModule, what: str) -> None:
    """Let a deployed network compute with the values of its weights, and mark activations by quantizers of one op.

    Those stand for grids alone: they do not compute. Raises UnsupportedError for other grids.
    """
    for name, module in list(deployed.named_modules()):
        if isinstance(module, (IntegerWeight, ActivationQuantizer)):
            raise UnsupportedError(f"{name}: {what} holds logarithms alone: quantize for the target nnie")
        if isinstance(module, GeometricQuantizer):
            deployed.set_submodule(name, _marker(module))
        elif isinstance(module, (DeployedConv, DeployedLinear)) and isinstance(module.integer, CodebookWeight):
            module.add_module("integer", _FloatWeight(module.integer))


def _marker(module: GeometricQuantizer) -> ActivationQuantizer:
    scale = module.table[len(module.table) // 2]
    scheme = Scheme(bits=(len(module.table) - 1).bit_length(), grid=Geometric(module.steps))
    declared = QParams(scale, torch.zeros_like(scale, dtype=torch.int32), scheme)
    zero_point = torch.zeros((), dtype=torch.int8)
    return ActivationQuantizer(StoredGrid(scale=scale, zero_point=zero_point, low=-128, high=127, declared=declared))
