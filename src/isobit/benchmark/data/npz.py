"""The user's own arrays: a `.npz` file with `x` (or `images`) and, where there are labels, `y` (or `labels`)."""

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from isobit.benchmark.data.arrays import Array, array_names, read_arrays
from isobit.benchmark.data.dataset import Dataset
from isobit.benchmark.data.normalization import Normalization, normalization
from isobit.core.errors import CalibrationError

_INPUTS = ("x", "images")
_LABELS = ("y", "labels")


def read_npz(path: str | Path, *, pixels: Normalization | str | None = None, batch_size: int = 50) -> Dataset:
    """Batches `(x, labels)`, or `(x,)` where the file has no labels.

    `x` is float, (n, …), taken as it is; or int32 or int64 token ids; or, where `pixels` names a normalization,
    uint8 images (n, h, w, c), which become (n, c, h, w) float32. Nothing is unpickled; a file written by
    `numpy.savez` (not `savez_compressed`) is mapped, so it may be larger than the memory.

    Raises CalibrationError for another type, layout or length, and for a missing or misspelt array.
    """
    keys = array_names(path)
    name = next((key for key in _INPUTS if key in keys), None)
    label_name = next((key for key in _LABELS if key in keys), None)
    if name is None:
        near = _near(_INPUTS, keys)
        hint = f"did you mean {near!r}? Rename it" if near else f"it holds {', '.join(keys) or 'nothing'}"
        raise CalibrationError(f"{path} holds no array x or images; {hint}")
    if label_name is None and (near := _near(_LABELS, keys)):
        raise CalibrationError(f"{path} holds no labels y or labels; did you mean {near!r}? Rename it")
    arrays = read_arrays(path, (name,) if label_name is None else (name, label_name))
    x = arrays[name]
    how = None if pixels is None else normalization(pixels)
    _check_inputs(x, f"array {name!r} of {path}", how)
    labels = None if label_name is None else _labels(arrays[label_name], len(x), f"array {label_name!r} of {path}")

    def read(of: Sequence[int]) -> tuple[Tensor, ...]:
        numbers = np.asarray(of)
        chosen = _tensor(x[numbers], how)
        return (chosen,) if labels is None else (chosen, torch.from_numpy(labels[numbers]))

    return Dataset(read, samples=len(x), batch_size=batch_size, name=str(path))


def _near(names: tuple[str, str], keys: list[str]) -> str:
    """The key that is nearly one of the names, such as `Y` or `label`; "" where there is none."""
    for name in names:
        if near := get_close_matches(name, [key.lower() for key in keys], n=1):
            return next(key for key in keys if key.lower() == near[0])
    return ""


def _check_inputs(x: Array, name: str, how: Normalization | None) -> None:
    if x.ndim < 2 or len(x) == 0:
        raise CalibrationError(f"{name} has shape {x.shape}: it needs at least one sample, (n, …)")
    if x.dtype == np.uint8:
        if how is None:
            raise CalibrationError(
                f"{name} is uint8. Ask for pixels='unit' or another normalization (--normalize unit) to turn images "
                "(n, h, w, c) into (n, c, h, w) float32, or save float32 as the network takes it"
            )
        if x.ndim != 4 or x.shape[3] not in (1, 3, 4):
            wanted = "channels come last: x.transpose(0, 2, 3, 1)" if x.ndim == 4 else "(n, h, w, 1) for grey images"
            raise CalibrationError(f"{name} is uint8 of shape {x.shape}, not images (n, h, w, c); {wanted}")
        if how.channels not in (1, x.shape[3]):
            raise CalibrationError(f"{name} has {x.shape[3]} channels, the normalization {how.channels}")
        return
    if how is not None:
        raise CalibrationError(f"{name} is {x.dtype}, and a normalization of pixels needs uint8 (n, h, w, c)")
    if not (np.issubdtype(x.dtype, np.floating) or x.dtype in (np.int32, np.int64)):
        raise CalibrationError(f"{name} is {x.dtype}. Save float32, uint8 images, or int64 token ids")


def _labels(y: Array, samples: int, name: str) -> Array:
    if y.shape != (samples,):
        raise CalibrationError(f"{name} has shape {y.shape}, and there are {samples} samples: labels are ({samples},)")
    if not np.issubdtype(y.dtype, np.integer):
        raise CalibrationError(f"{name} is {y.dtype}: labels are integers, one class index per sample")
    return y.astype(np.int64)


def _tensor(x: Array, how: Normalization | None) -> Tensor:
    if how is not None:
        return how.apply(x)
    return torch.from_numpy(x.astype(np.float32 if np.issubdtype(x.dtype, np.floating) else np.int64))
