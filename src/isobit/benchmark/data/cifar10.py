"""CIFAR-10 (Krizhevsky 2009): the lossless subset, the complete JPEG copy, and the user's own binary version."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from isobit.benchmark.data.arrays import Array, read_arrays
from isobit.benchmark.data.dataset import Dataset
from isobit.benchmark.data.images import decode_rgb, pillow_image
from isobit.benchmark.data.location import data_file
from isobit.benchmark.data.normalization import Normalization, normalization
from isobit.core.errors import CalibrationError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

Split = Literal["train", "test"]
_RECORD = 1 + 3 * 32 * 32


def read_cifar10(split: Split = "test", *, normalize: Normalization | str = "torch", batch_size: int = 100) -> Dataset:
    """The original pixels of the first 4,000 training and first 1,000 test images, from the data folder.

    Batches are (n, 3, 32, 32) float32 and (n,) int64. Raises CalibrationError where the file is missing.
    """
    how = normalization(normalize)
    arrays = read_arrays(data_file("cifar10/cifar10_lossless_subset.npz"), (f"{split}_x", f"{split}_y"))
    x, y = arrays[f"{split}_x"], arrays[f"{split}_y"]

    def read(of: Sequence[int]) -> tuple[Tensor, Tensor]:
        return how.apply(x[np.asarray(of)]), _labels(y, of)

    return Dataset(read, samples=len(x), batch_size=batch_size, name=f"CIFAR-10 lossless {split}")


def read_cifar10_jpeg(
    split: Split = "test", *, normalize: Normalization | str = "torch", batch_size: int = 100
) -> Dataset:
    """All 50,000 or 10,000 images, JPEG-compressed: a domain shift of ten points for networks trained elsewhere.

    Use it for networks that are trained on it, too. The compressed bytes are in memory (46 MB for training), the
    pixels of one batch at a time. Raises CalibrationError, and MissingExtraError without Pillow.
    """
    pillow_image()
    how = normalization(normalize)
    names = {"train": ("train_0", "train_1"), "test": ("test",)}[split]
    parts = [read_arrays(data_file(f"cifar10/cifar10_jpeg_{name}.npz"), ("jpeg", "offset", "label")) for name in names]
    first = np.cumsum([0, *(len(part["label"]) for part in parts)])
    y = np.concatenate([part["label"] for part in parts])

    def pixels(index: int) -> Array:
        number = int(np.searchsorted(first, index, side="right")) - 1
        part, i = parts[number], index - first[number]
        content = part["jpeg"][part["offset"][i] : part["offset"][i + 1]].tobytes()
        return np.asarray(decode_rgb(content, name=f"image {index} of CIFAR-10 JPEG {split}"))

    def read(of: Sequence[int]) -> tuple[Tensor, Tensor]:
        return how.apply(np.stack([pixels(i) for i in of])), _labels(y, of)

    return Dataset(read, samples=len(y), batch_size=batch_size, name=f"CIFAR-10 JPEG {split}")


def read_cifar10_binary(
    folder: str | Path, split: Split = "test", *, normalize: Normalization | str = "torch", batch_size: int = 100
) -> Dataset:
    """The user's own CIFAR-10 in its binary version: `data_batch_1.bin` to `_5.bin`, `test_batch.bin`.

    The python version is made of pickles, which isobit never loads. Each record is a label byte and 3,072 pixel
    bytes, channel by channel. The files are mapped, not read. Raises CalibrationError that names the file.
    """
    how = normalization(normalize)
    folder = Path(folder)
    names = [f"data_batch_{i}" for i in range(1, 6)] if split == "train" else ["test_batch"]
    parts = [_records(folder, name) for name in names]
    first = np.cumsum([0, *(len(part) for part in parts)])

    def record(index: int) -> Array:
        number = int(np.searchsorted(first, index, side="right")) - 1
        found: Array = parts[number][index - first[number]]
        return found

    def read(of: Sequence[int]) -> tuple[Tensor, Tensor]:
        records = np.stack([record(i) for i in of])
        return how.apply(records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)), _labels(records[:, 0])

    return Dataset(read, samples=int(first[-1]), batch_size=batch_size, name=f"CIFAR-10 {split} of {folder}")


def _records(folder: Path, name: str) -> Array:
    path = folder / f"{name}.bin"
    if not path.is_file():
        if (folder / name).is_file():
            raise CalibrationError(
                f"{folder / name} is a pickle of CIFAR-10's python version, and isobit never loads pickles. "
                "Get the binary version (cifar-10-binary.tar.gz)"
            )
        raise CalibrationError(f"there is no {path}: CIFAR-10's binary version has data_batch_1.bin … test_batch.bin")
    size = path.stat().st_size
    if size == 0 or size % _RECORD:
        raise CalibrationError(f"{path} has {size} bytes, which are no whole records of {_RECORD}: it is truncated")
    records = np.memmap(path, dtype=np.uint8, mode="r").reshape(-1, _RECORD)
    if int(records[:, 0].max()) >= len(CLASSES):
        raise CalibrationError(f"{path} holds label {int(records[:, 0].max())}; CIFAR-10 has 0..9. Is it CIFAR-100?")
    return records


def _labels(y: Array, of: Sequence[int] | None = None) -> Tensor:
    chosen = y if of is None else y[np.asarray(of)]
    return torch.from_numpy(chosen.astype(np.int64))
