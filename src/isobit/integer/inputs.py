"""A user's data in the form that a file takes: its batch, the place of its channels, its integers."""

from collections.abc import Iterable, Iterator

import numpy as np
import onnx
import torch
from torch import Tensor

from isobit.core.batches import Batch
from isobit.integer.files import Input, inputs_of


def fitted(file: onnx.ModelProto, given: Iterable[Batch]) -> Iterator[Batch]:
    """The batches as `file` takes them.

    - a file with a fixed batch gets each in parts of that size, where they divide it
    - images N × C × H × W get their channels last where the file's shape is that and not the other
    - floats become integers where the file takes those: clip(rint(x / s) + z), with its own scale and zero point
    """
    wanted = inputs_of(file)
    for batch in given:
        if len(batch.inputs) != len(wanted):
            yield batch  # the engine says what the file takes
            continue
        for part in _parts(batch, wanted[0].shape[0] if wanted and wanted[0].shape else None):
            values = tuple(_as_file(x, want) for x, want in zip(part.inputs, wanted, strict=True))
            yield Batch(values, part.labels)


def _parts(batch: Batch, fixed: int | None) -> Iterator[Batch]:
    if fixed is None or fixed == batch.size or batch.size % fixed:
        yield batch
        return
    for i in range(0, batch.size, fixed):
        labels = None if batch.labels is None else batch.labels[i : i + fixed]
        yield Batch(tuple(x[i : i + fixed] for x in batch.inputs), labels)


def _as_file(x: Tensor, want: Input) -> Tensor:
    if x.dim() == 4 == len(want.shape) and not _fits(x, want) and _fits(x.permute(0, 2, 3, 1), want):
        x = x.permute(0, 2, 3, 1).contiguous()
    if want.grid is None or not x.is_floating_point() or want.dtype.kind not in "iu":
        return x
    scale, zero_point = want.grid
    limits = np.iinfo(want.dtype)
    q = torch.round(x / float(scale)) + zero_point
    return q.clamp(int(limits.min), int(limits.max)).to(torch.from_numpy(np.zeros(0, want.dtype)).dtype)


def _fits(x: Tensor, want: Input) -> bool:
    return all(size in (None, have) for size, have in zip(want.shape[1:], x.shape[1:], strict=True))
