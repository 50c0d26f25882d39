"""scikit-learn's 1,797 handwritten digits of 8x8 pixels (the test part of UCI's Optical Recognition set)."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from isobit.benchmark.data.dataset import Dataset
from isobit.core.errors import MissingExtraError


def read_digits(split: Literal["train", "test"], *, batch_size: int = 50) -> Dataset:
    """Batches (n, 1, 8, 8) float32 in 0..1 and (n,) int64; every fourth image is for testing (450), the rest to train.

    Raises MissingExtraError without scikit-learn, whose package holds the images: nothing is downloaded.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtraError("scikit-learn", "demo") from error
    bunch = load_digits()
    x = torch.from_numpy((bunch.images / 16).astype(np.float32)[:, None])
    y = torch.from_numpy(bunch.target.astype(np.int64))
    chosen = [i for i in range(len(x)) if (i % 4 == 0) == (split == "test")]

    def read(of: Sequence[int]) -> tuple[Tensor, Tensor]:
        return x[list(of)], y[list(of)]

    return Dataset(read, samples=chosen, batch_size=batch_size, name=f"digits {split}")
