"""500 images of ImageNet, one for each of the classes 0..499 (the data folder's `imagenet_sample`)."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from isobit.benchmark.data.arrays import read_arrays
from isobit.benchmark.data.dataset import Dataset
from isobit.benchmark.data.images import center_crop, decode_rgb, pillow_image
from isobit.benchmark.data.location import data_file
from isobit.benchmark.data.normalization import Normalization, normalization


def read_imagenet_sample(*, normalize: Normalization | str = "torch", batch_size: int = 50, crop: int = 224) -> Dataset:
    """Batches (n, 3, crop, crop) and labels 0..499; the middle of images whose shorter side is 256.

    They look like training images: use them to compare a quantized network with its float self, never to quote
    ImageNet accuracy. The compressed bytes (25 MB) are in memory, the pixels of one batch at a time. Raises
    CalibrationError where the file is missing, MissingExtraError without Pillow.
    """
    pillow_image()
    how = normalization(normalize)
    arrays = read_arrays(data_file("imagenet_sample/imagenet_sample_0.npz"), ("jpeg", "offset", "label"))
    content, offset, labels = arrays["jpeg"], arrays["offset"], arrays["label"].astype(np.int64)

    def read(of: Sequence[int]) -> tuple[Tensor, Tensor]:
        pictures = []
        for i in of:
            name = f"image {i} of the ImageNet sample"
            pictures.append(
                center_crop(decode_rgb(content[offset[i] : offset[i + 1]].tobytes(), name=name), crop, name=name)
            )
        return how.apply(np.stack(pictures)), torch.from_numpy(labels[np.asarray(of)])

    return Dataset(read, samples=len(labels), batch_size=batch_size, name="the ImageNet sample")
