"""Batches: one place that says what a user's batch of data means."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from isobit.core.errors import CalibrationError

Data = Iterable[Any]


@dataclass(frozen=True, eq=False)
class Batch:
    """The inputs of a network, in the order of its forward, and the labels (n,) where there are any."""

    inputs: tuple[Tensor, ...]
    labels: Tensor | None = None

    @property
    def size(self) -> int:
        """How many samples."""
        return int(self.inputs[0].shape[0])


def as_batch(item: Any) -> Batch:
    """Understand a batch: `x`, `(x,)`, `(x, labels)`, `((x1, x2), labels)` or a dict of inputs with `labels`.

    >>> as_batch((torch.zeros(2, 3), torch.tensor([0, 1]))).size
    2
    """
    if isinstance(item, Batch):
        return item
    if isinstance(item, Mapping):
        named = dict(item)
        labels = named.pop("labels", named.pop("label", None))
        return Batch(tuple(_tensor(v) for v in named.values()), None if labels is None else _tensor(labels))
    if isinstance(item, (tuple, list)):
        if len(item) not in (1, 2):
            raise CalibrationError(
                f"a batch of {len(item)} parts is ambiguous: give (inputs, labels), and several inputs as a tuple, "
                "((x1, x2), labels)"
            )
        inputs = item[0] if isinstance(item[0], (tuple, list)) else (item[0],)
        labels = _tensor(item[1]) if len(item) == 2 else None
        return Batch(tuple(_tensor(x) for x in inputs), labels)
    return Batch((_tensor(item),))


def batches(data: Data, *, name: str = "calibration data") -> Iterator[Batch]:
    """Walk over `data` and check each batch: not empty, finite, the same shape but for the number of samples.

    Raises CalibrationError that names the batch.
    """
    shapes: list[torch.Size] | None = None
    samples = 0
    if isinstance(data, (Tensor, np.ndarray)):
        data = [data]
    for index, item in enumerate(data):
        batch = as_batch(item)
        if not batch.inputs or any(x.dim() == 0 for x in batch.inputs):
            raise CalibrationError(f"batch {index} of the {name} holds no tensor with a batch dimension")
        for x in batch.inputs:
            if x.is_floating_point() and not bool(torch.isfinite(x).all()):
                kind = "NaN" if bool(torch.isnan(x).any()) else "Inf"
                raise CalibrationError(f"batch {index} of the {name} holds {kind}. Remove or repair that sample")
        now = [x.shape[1:] for x in batch.inputs]
        if shapes is not None and now != shapes:
            raise CalibrationError(
                f"batch {index} of the {name} has samples of shape {_shapes(now)}, the ones before {_shapes(shapes)}"
            )
        shapes = now
        samples += batch.size
        if batch.size:
            yield batch
    if not samples:
        raise CalibrationError(f"the {name} is empty: give at least one sample (64 to 1,024 are usual)")


def check_not_constant(first: Batch, rest_differ: bool, *, name: str = "calibration data") -> None:
    """Raise CalibrationError where every value of every sample is the same: no range can be learned from that."""
    floats = [x for x in first.inputs if x.is_floating_point()]
    if floats and not rest_differ and all(bool((x == x.flatten()[0]).all()) for x in floats):
        raise CalibrationError(
            f"the {name} is constant: every value is {float(floats[0].flatten()[0]):g}. Give real samples"
        )


def _tensor(x: Any) -> Tensor:
    if isinstance(x, Tensor):
        return x
    if isinstance(x, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(x))
    raise CalibrationError(f"a batch has to hold tensors or numpy arrays, got {type(x).__name__}")


def _shapes(shapes: list[torch.Size]) -> str:
    return " and ".join(str(tuple(s)) for s in shapes)
