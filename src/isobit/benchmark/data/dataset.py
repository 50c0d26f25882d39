"""A set of samples that is read batch by batch, any number of times."""

from collections.abc import Callable, Iterator, Sequence
from math import ceil
from typing import final

from torch import Tensor

from isobit.core.errors import CalibrationError, SettingError

Read = Callable[[Sequence[int]], tuple[Tensor, ...]]
"""Reads the samples of the given numbers: (x float32, labels int64), or (x,) where there are no labels."""


@final
class Dataset:
    """Batches `(x, labels)` of chosen samples; only the batch at hand is decoded.

    Iterable any number of times, always in the same order. `len` is the number of batches. Choosing gives a new
    data set: `every(10)`, `take(64)`, `skip(64)`, `select([3, 1])`, `batched(1)`.

    >>> import torch
    >>> squares = Dataset(lambda of: (torch.tensor(of).float() ** 2, torch.tensor(of)), samples=10, batch_size=4)
    >>> [x.tolist() for x, _ in squares.every(3)]
    [[0.0, 9.0, 36.0, 81.0]]
    >>> len(squares), len(squares.skip(2)), squares.take(3).samples
    (3, 2, 3)
    """

    def __init__(
        self, read: Read, *, samples: int | Sequence[int], batch_size: int = 50, name: str = "the data"
    ) -> None:
        """`samples` says how many there are, or the numbers of those meant."""
        if batch_size < 1:
            raise SettingError(f"batch_size has to be at least 1, got {batch_size}")
        self._read = read
        self.indices: Sequence[int] = range(samples) if isinstance(samples, int) else samples
        self.batch_size = batch_size
        self.name = name
        if not len(self.indices):
            raise CalibrationError(f"{name} is empty: no sample is chosen")

    @property
    def samples(self) -> int:
        """How many samples."""
        return len(self.indices)

    def __len__(self) -> int:
        return ceil(self.samples / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        for start in range(0, self.samples, self.batch_size):
            yield self._read(self.indices[start : start + self.batch_size])

    def __repr__(self) -> str:
        return f"Dataset({self.name}: {self.samples} samples in {len(self)} batches of {self.batch_size})"

    def every(self, n: int, *, start: int = 0) -> "Dataset":
        """Every n-th sample, from number `start` on."""
        _at_least("every", n, 1)
        return self._chosen(self.indices[start::n])

    def take(self, n: int) -> "Dataset":
        """The first n samples, or all where there are fewer."""
        _at_least("take", n, 1)
        return self._chosen(self.indices[:n])

    def skip(self, n: int) -> "Dataset":
        """All but the first n samples. Raises CalibrationError where none is left."""
        _at_least("skip", n, 0)
        return self._chosen(self.indices[n:])

    def select(self, numbers: Sequence[int]) -> "Dataset":
        """The samples of these numbers, in this order, counted within this set."""
        wrong = [i for i in numbers if not 0 <= i < self.samples]
        if wrong:
            raise SettingError(f"{self.name} has samples 0..{self.samples - 1}, there is no sample {wrong[0]}")
        return self._chosen([self.indices[i] for i in numbers])

    def without(self, other: "Dataset") -> "Dataset":
        """The samples that `other`, chosen from the same data, does not hold: what is left for evaluation."""
        taken = set(other.indices)
        return self._chosen([i for i in self.indices if i not in taken])

    def batched(self, batch_size: int) -> "Dataset":
        """The same samples in batches of another size."""
        return Dataset(self._read, samples=self.indices, batch_size=batch_size, name=self.name)

    def _chosen(self, indices: Sequence[int]) -> "Dataset":
        return Dataset(self._read, samples=indices, batch_size=self.batch_size, name=self.name)


def _at_least(what: str, n: int, low: int) -> None:
    if n < low:
        raise SettingError(f"{what}(n) needs n >= {low}, got {n}")
