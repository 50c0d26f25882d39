"""The user's own images: one folder per class, as torchvision's `ImageFolder` wants them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from isobit.benchmark.data.dataset import Dataset
from isobit.benchmark.data.images import Pixels, center_crop, decode_rgb, pillow_image, resize_shorter
from isobit.benchmark.data.normalization import Normalization, normalization
from isobit.core.errors import CalibrationError, SettingError

SUFFIXES = {".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}


def read_image_folder(
    folder: str | Path,
    *,
    resize: int | None = 256,
    crop: int | None = 224,
    normalize: Normalization | str = "torch",
    batch_size: int = 50,
) -> Dataset:
    """Images of `folder/<class>/…`, labelled by the place of their class among the sorted folder names.

    The shorter side is scaled to `resize` (bilinear, antialiased), the middle `crop` x `crop` pixels are taken; None
    leaves that step out. Batches are (n, 3, h, w). Hidden folders and files are not looked at.

    Raises CalibrationError for a folder that is missing, has no class folders, a class without images, or an image
    that cannot be decoded (when it is read); MissingExtraError without Pillow.
    """
    pillow_image()
    if resize is not None and crop is not None and crop > resize:
        raise SettingError(f"a crop of {crop} does not fit into a shorter side of {resize}: give crop <= resize")
    how = normalization(normalize)
    files = _labelled_files(Path(folder))

    def pixels(path: Path) -> Pixels:
        picture = decode_rgb(path.read_bytes(), name=str(path))
        if resize is not None:
            picture = resize_shorter(picture, resize)
        return np.asarray(picture) if crop is None else center_crop(picture, crop, name=str(path))

    def read(of: Sequence[int]) -> tuple[Tensor, Tensor]:
        pictures = [pixels(files[i][0]) for i in of]
        if len({p.shape for p in pictures}) > 1:
            raise CalibrationError(f"the images in {folder} differ in size: give resize and crop")
        return how.apply(np.stack(pictures)), torch.tensor([files[i][1] for i in of])

    return Dataset(read, samples=len(files), batch_size=batch_size, name=f"the images in {folder}")


def class_names(folder: str | Path) -> list[str]:
    """The sorted names of the class folders. Raises CalibrationError where there is none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise CalibrationError(f"there is no image folder {folder}")
    names = sorted(d.name for d in folder.iterdir() if d.is_dir() and not d.name.startswith("."))
    if names:
        return names
    if any(f.suffix.lower() in SUFFIXES for f in folder.iterdir()):
        raise CalibrationError(
            f"{folder} holds images but no class folders. Move them into one folder per class; for calibration, "
            f"where labels do not matter, one will do: {folder / 'all'}"
        )
    raise CalibrationError(f"{folder} holds no class folders with images ({', '.join(sorted(SUFFIXES))})")


def _labelled_files(folder: Path) -> list[tuple[Path, int]]:
    found: list[tuple[Path, int]] = []
    for label, name in enumerate(class_names(folder)):
        inside = sorted(
            f
            for f in (folder / name).rglob("*")
            if f.suffix.lower() in SUFFIXES and not f.name.startswith(".") and f.is_file()
        )
        if not inside:
            raise CalibrationError(
                f"the class folder {folder / name} holds no images ({', '.join(sorted(SUFFIXES))}). Fill or remove it"
            )
        found.extend((f, label) for f in inside)
    return found
