"""The grid of a layer's weight, laid out like the matrix that the layer multiplies with."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from isobit.algorithms.layer_columns import weight_matrix
from isobit.core.granularity import expand
from isobit.core.qparams import QParams
from isobit.core.rounding import round_to_integer
from isobit.core.scheme import Scheme


@dataclass(frozen=True, eq=False)
class RowGrid:
    """Scale and zero point of each weight, (groups, rows, columns).

    `owner`, (groups, rows), is the number of the scale of a row's first weight; `several` says that others have others.
    """

    scale: Tensor
    zero_point: Tensor
    scheme: Scheme
    owner: Tensor
    several: bool

    @classmethod
    def of(cls, layer: nn.Module, weight: Tensor, grid: QParams) -> Self:
        """The grid of that layer's weight."""

        def matrix(values: Tensor) -> Tensor:
            return weight_matrix(layer, expand(values, weight.dim(), grid.scheme.granularity).expand_as(weight))

        numbers = matrix(torch.arange(grid.scale.numel()).reshape(grid.scale.shape))
        several = not torch.equal(numbers, numbers[..., :1].expand_as(numbers))
        return cls(matrix(grid.scale), matrix(grid.zero_point), grid.scheme, numbers[..., 0], several)

    def stacked(self, factors: Tensor) -> "RowGrid":
        """The rows once for each factor, (n,), of the scale, one below the other."""
        scale = self.scale[:, None] * factors.to(self.scale.dtype)[None, :, None, None]
        many = len(factors)
        zero_point, owner = self.zero_point.repeat(1, many, 1), self.owner.repeat(1, many)
        return RowGrid(scale.flatten(1, 2), zero_point, self.scheme, owner, self.several)

    def scaled(self, factor: Tensor) -> "RowGrid":
        """Each row's scale times the factor of its owner; factor: (number of scales,)."""
        scale = self.scale * factor.to(self.scale.dtype)[self.owner][..., None]
        return RowGrid(scale, self.zero_point, self.scheme, self.owner, self.several)

    def integers(self, weight: Tensor, columns: Tensor | None = None) -> Tensor:
        """clip(round(w / s) + z) of these columns, by their numbers, (groups, rows, n), or of all."""
        scale, zero_point = self._of(columns)
        q = round_to_integer(weight.to(scale.dtype) / scale, self.scheme.rounding) + zero_point
        return q.clamp(self.scheme.quant_min, self.scheme.quant_max)

    def rounded(self, weight: Tensor, columns: Tensor | None = None) -> Tensor:
        """The values of `integers`, float64."""
        scale, zero_point = self._of(columns)
        return ((self.integers(weight, columns) - zero_point) * scale).double()

    def _of(self, columns: Tensor | None) -> tuple[Tensor, Tensor]:
        if columns is None:
            return self.scale, self.zero_point
        if not self.several:
            return self.scale[..., :1], self.zero_point[..., :1]
        return self.scale.take_along_dim(columns, 2), self.zero_point.take_along_dim(columns, 2)
