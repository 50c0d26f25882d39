"""LiteRT files of a few ops, as TensorFlow's converter writes them: bytes go in, bytes come out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from isobit.core.litert_file import serialized
from isobit.export.litert_builder import Builder

Grid = tuple[float, int]


class Network:
    """A file under construction; tensors are named as they come, `like` gives an op the format of another tensor."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.builder = Builder()
        self.shapes: list[tuple[int, ...]] = []
        self.grids: dict[int, Grid] = {}
        self.inputs: list[int] = []
        self.outputs: list[int] = []

    def grid(self) -> Grid:
        """Scales of two digits make many ties."""
        return float(np.float32(self.rng.integers(1, 9) / 100)), int(self.rng.integers(-60, 60))

    def tensor(self, shape: Sequence[int], grid: Grid | None, dtype: Any = np.int8, name: str = "") -> int:
        """A tensor that is computed or given."""
        made = (np.float32(grid[0]), np.array(grid[1])) if grid is not None else None
        index = self.builder.tensor(name or f"t{len(self.builder.graph.tensors)}", tuple(shape), dtype, grid=made)
        if grid is not None:
            self.grids[index] = grid
        return index

    def input(self, *shape: int, grid: Grid | None = None, dtype: Any = np.int8) -> int:
        """An input of bytes."""
        index = self.tensor(shape, grid or self.grid(), dtype)
        self.inputs.append(index)
        return index

    def constant(self, data: Any, scale: Any = None, axis: int = 0) -> int:
        """A constant, with a scale for each index along `axis`."""
        return self.builder.constant(f"c{len(self.builder.graph.tensors)}", np.asarray(data), scale, axis)

    def op(
        self,
        kind: str,
        inputs: Sequence[int],
        shape: Sequence[int],
        *,
        grid: Grid | None = None,
        like: int | None = None,
        dtype: Any = np.int8,
        version: int = 2,
        bare: bool = False,
        **options: Any,
    ) -> int:
        """An op and its result; a `bare` one has no options in the file."""
        chosen = self.grids[like] if like is not None else grid
        y = self.tensor(shape, chosen or (self.grid() if dtype == np.int8 else None), dtype)
        self.builder.op(kind, list(inputs), [y], version=version, **options)
        if bare:
            op = self.builder.graph.operators[-1]
            op.builtinOptions, op.builtinOptionsType = None, 0
        return y

    def weight(self, shape: Sequence[int], *, axis: int | None = 0) -> tuple[int, np.ndarray]:
        """Integers of -127 to 127 and their scales."""
        size = 1 if axis is None else shape[axis]
        scale = self.rng.uniform(0.002, 0.02, size).astype(np.float32)
        data = self.rng.integers(-127, 128, shape).astype(np.int8)
        return self.constant(data, scale, axis or 0), scale

    def conv(self, x: int, channels: Sequence[int], out: Sequence[int], **options: Any) -> int:
        """CONV_2D of 3 × 3, padded as SAME."""
        w, scale = self.weight((channels[1], 3, 3, channels[0]))
        b = self.rng.integers(-3000, 3000, channels[1]).astype(np.int32)
        inputs = [x, w, self.constant(b, np.float32(self.grids[x][0]) * scale)]
        plain = {"padding": 0, "strideH": 1, "strideW": 1, "dilationHFactor": 1, "dilationWFactor": 1}
        return self.op("CONV_2D", inputs, out, grid=(0.2, -100), version=3, **{**plain, **options})

    def save(self, path: Path, *outputs: int) -> Path:
        """Write the file."""
        model = self.builder.finish(self.inputs, [*outputs], b"{}")
        model.metadata = []
        path.write_bytes(serialized(model))
        return path

    def draw(self) -> list[np.ndarray]:
        """Bytes for each input."""
        tensors = self.builder.graph.tensors
        shapes = [[int(n) for n in tensors[i].shape] for i in self.inputs]
        return [self.rng.integers(-128, 128, shape).astype(np.int8) for shape in shapes]
