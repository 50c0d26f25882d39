"""From a folder, an `.npz` file, `file.py:callable` or a built-in name to batches that can be read many times."""

from collections.abc import Callable, Iterator, Sized
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any, final

import numpy as np
from torch import Tensor

from isobit.benchmark.data import (
    Dataset,
    read_cifar10,
    read_cifar10_jpeg,
    read_digits,
    read_image_folder,
    read_imagenet_sample,
    read_npz,
)
from isobit.cli.loading import call, described, explained, find, is_reference
from isobit.core.batches import Batch, Data, as_batch
from isobit.core.errors import CalibrationError, IsobitError, SettingError, UnknownNameError
from isobit.core.progress import Progress


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """How data is read; None is the usual. `resize` and `crop` are for images, `normalize` for anything with pixels."""

    batch_size: int = 50
    resize: int | None = None
    crop: int | None = None
    normalize: str | None = None


BUILT_IN: dict[str, Callable[[Reading], Dataset]] = {
    "cifar10:train": lambda how: read_cifar10("train", normalize=how.normalize or "torch", batch_size=how.batch_size),
    "cifar10:test": lambda how: read_cifar10("test", normalize=how.normalize or "torch", batch_size=how.batch_size),
    "cifar10-jpeg:train": lambda how: read_cifar10_jpeg(
        "train", normalize=how.normalize or "torch", batch_size=how.batch_size
    ),
    "cifar10-jpeg:test": lambda how: read_cifar10_jpeg(
        "test", normalize=how.normalize or "torch", batch_size=how.batch_size
    ),
    "digits:train": lambda how: read_digits("train", batch_size=how.batch_size),
    "digits:test": lambda how: read_digits("test", batch_size=how.batch_size),
    "imagenet-sample": lambda how: read_imagenet_sample(
        normalize=how.normalize or "torch", batch_size=how.batch_size, crop=how.crop or 224
    ),
}
"""Data sets by name."""


@final
class Batches:
    """Batches that can be read many times, and what is known of them before they are read.

    `samples` and `batches` are None where only reading tells.
    """

    def __init__(self, read: Callable[[], Data], *, text: str, samples: int | None, batches: int | None) -> None:
        self._read, self.text, self.samples, self.batches = read, text, samples, batches

    def __iter__(self) -> Iterator[Any]:
        return iter(self._read())

    def __repr__(self) -> str:
        return self.text

    def counted(self, progress: Progress) -> Progress:
        """The same progress, told the number of batches where the caller does not know it."""
        return lambda what, done, total: progress(what, done, self.batches if total is None else total)

    def watched(self, progress: Progress, what: str) -> Iterator[Any]:
        """The batches, for a reader that shows no progress of its own."""
        for done, item in enumerate(self, start=1):
            yield item
            progress(what, done, self.batches)

    def labelled(self) -> bool:
        """Whether the first batch has labels."""
        return next((as_batch(item).labels is not None for item in self), False)


def load_data(reference: str, reading: Reading, *, samples: int | None = None) -> Batches:
    """The batches of a reference: at most `samples`, spread evenly over a data set whose size is known.

    Raises CalibrationError, SettingError or UnknownNameError.
    """
    if samples is not None and samples < 1:
        raise SettingError(f"the number of samples has to be at least 1, got {samples}")
    if reading.batch_size < 1:
        raise SettingError(f"the batch size has to be at least 1, got {reading.batch_size}")
    if reference in BUILT_IN:
        return _of_dataset(BUILT_IN[reference](reading), samples)
    place = reference.rpartition(":")[0]
    if is_reference(reference) and not Path(reference).exists():
        if place in {name.partition(":")[0] for name in BUILT_IN}:
            raise UnknownNameError("data set", reference, BUILT_IN)
        return _of_callable(reference, samples)
    path = Path(reference)
    if path.is_dir():
        return _of_dataset(_read_folder(path, reading), samples)
    if path.suffix == ".npz":
        return _of_dataset(read_npz(path, pixels=reading.normalize, batch_size=reading.batch_size), samples)
    if path.suffix == ".py":
        raise CalibrationError(f"{reference} names no object. Say which one, such as {reference}:batches")
    if path.exists():
        raise CalibrationError(f"{reference} is neither a folder of images nor an .npz file nor file.py:callable")
    raise CalibrationError(
        f"there is no data {reference!r}. Give a folder with one folder of images per class, an .npz file, "
        f"file.py:callable, or one of {', '.join(BUILT_IN)}"
    )


def _read_folder(path: Path, reading: Reading) -> Dataset:
    return read_image_folder(
        path,
        resize=256 if reading.resize is None else reading.resize or None,
        crop=224 if reading.crop is None else reading.crop or None,
        normalize=reading.normalize or "torch",
        batch_size=reading.batch_size,
    )


def _of_dataset(dataset: Dataset, wanted: int | None) -> Batches:
    """Evenly spread: an image folder is sorted by class, and its first images would be of one class."""
    n = dataset.samples
    if wanted is None or wanted >= n:
        return Batches(lambda: dataset, text=f"{n:,} samples of {dataset.name}", samples=n, batches=len(dataset))
    chosen = dataset.select([i * n // wanted for i in range(wanted)])
    text = f"{wanted:,} of {n:,} samples of {dataset.name}"
    return Batches(lambda: chosen, text=text, samples=wanted, batches=len(chosen))


def _of_callable(reference: str, wanted: int | None) -> Batches:
    """What a function gives is kept where it can be read many times; a generator is asked for anew each time."""
    found = find(reference, error=CalibrationError)
    data = found if isinstance(found, Dataset) else call(found, reference, error=CalibrationError)
    if isinstance(data, Dataset):
        return _of_dataset(data, wanted)
    if data is found and isinstance(data, Iterator):
        raise CalibrationError(f"{reference} can be read only once. Name a function that returns it anew")
    several = isinstance(data, Sized) and not isinstance(data, (Tensor, np.ndarray))
    known = len(data) if several else None
    made = [data]

    def read() -> Iterator[Any]:
        now = made[0] if made else call(found, reference, error=CalibrationError)
        if isinstance(now, Iterator):
            made.clear()
        for item in _guarded([now] if isinstance(now, (Tensor, np.ndarray)) else now, reference, wanted):
            if wanted is not None and item.inputs and item.size:
                ceiling = ceil(wanted / item.size)
                batches.batches = batches.batches or (ceiling if known is None else min(known, ceiling))
            yield item

    text = reference if wanted is None else f"up to {wanted:,} samples of {reference}"
    batches = Batches(read, text=text, samples=None, batches=known if wanted is None else None)
    return batches


def _guarded(data: Any, reference: str, wanted: int | None) -> Iterator[Batch]:
    """The batches, at most `wanted` samples; what the user's code raises names its line."""
    try:
        walk = iter(data)
    except TypeError as error:
        raise CalibrationError(
            f"{reference} gives {described(data)}, not batches. Give a list, a DataLoader or a generator of "
            "tensors or of (x, labels)"
        ) from error
    left = wanted
    while left is None or left > 0:
        try:
            item = next(walk)
        except StopIteration:
            return
        except IsobitError:
            raise
        except Exception as raised:
            raise CalibrationError(f"{reference} raised {explained(raised)}") from raised
        batch = as_batch(item)
        if left is not None:
            batch = _first(batch, left)
            left -= batch.size
        yield batch


def _first(batch: Batch, count: int) -> Batch:
    if not batch.inputs or batch.inputs[0].dim() == 0 or batch.size <= count:
        return batch
    labels = None if batch.labels is None else batch.labels[:count]
    return Batch(tuple(x[:count] for x in batch.inputs), labels)
