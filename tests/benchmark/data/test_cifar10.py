"""CIFAR-10's three forms against each other and against published pixels."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch

from isobit.benchmark.data import read_cifar10, read_cifar10_binary, read_cifar10_jpeg
from isobit.core.errors import CalibrationError

Image = pytest.importorskip("PIL.Image")


def test_lossless_pixels_are_those_of_test_batch(shared_data: Path) -> None:
    x, y = next(iter(read_cifar10("test", normalize="pixels")))
    assert x.shape == (100, 3, 32, 32)
    assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
    assert x[0, :, 0, 0].tolist() == [158, 112, 49]  # as published for the first image of test_batch
    assert y[:10].tolist() == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]


@pytest.mark.parametrize(("split", "samples"), [("train", 4000), ("test", 1000)])
def test_lossless_sizes(shared_data: Path, split: str, samples: int) -> None:
    data = read_cifar10(split)
    assert (data.samples, len(data)) == (samples, samples // 100)


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_jpeg_copy_holds_the_same_images(shared_data: Path, split: str) -> None:
    with np.load(shared_data / "cifar10" / "cifar10_lossless_subset.npz") as file:
        index = file[f"{split}_jpeg_index"]
    lossless = read_cifar10(split, normalize="pixels").every(len(index) // 50)
    jpeg = read_cifar10_jpeg(split, normalize="pixels").select([int(i) for i in index[:: len(index) // 50]])
    for (x, y), (z, w) in zip(lossless, jpeg, strict=True):
        assert torch.equal(y, w)
        assert 1 < float((x - z).abs().mean()) < 12  # 5.8 over the whole set; other images differ by some 60


def test_the_second_jpeg_file_follows_the_first(shared_data: Path) -> None:
    train = read_cifar10_jpeg("train", normalize="pixels")
    assert train.samples == 50_000
    [(x, y)] = train.select([24_999, 25_000, 49_999])
    assert y.tolist() == [9, 0, 9]
    for image, part, i in ((x[0], 0, 24_999), (x[1], 1, 0), (x[2], 1, 24_999)):
        with np.load(shared_data / "cifar10" / f"cifar10_jpeg_train_{part}.npz") as file:
            content = file["jpeg"][file["offset"][i] : file["offset"][i + 1]].tobytes()
        expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
        assert np.array_equal(image.numpy(), expected.transpose(2, 0, 1))


def test_jpeg_sizes(shared_data: Path) -> None:
    assert read_cifar10_jpeg("test").take(30).samples == 30


def written(folder: Path, name: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(count)
    x = generator.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    y = generator.integers(0, 10, count, dtype=np.uint8)
    with (folder / name).open("wb") as file:
        for image, label in zip(x, y, strict=True):
            file.write(bytes([label]) + image[:, :, 0].tobytes() + image[:, :, 1].tobytes() + image[:, :, 2].tobytes())
    return x, y


def test_binary_version(tmp_path: Path) -> None:
    parts = [written(tmp_path, f"data_batch_{i}.bin", 3 + i) for i in range(1, 6)]
    x, y = np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])
    batches = list(read_cifar10_binary(tmp_path, "train", normalize="pixels", batch_size=7))
    assert np.array_equal(np.concatenate([b[0].numpy() for b in batches]), x.transpose(0, 3, 1, 2))
    assert np.array_equal(np.concatenate([b[1].numpy() for b in batches]), y)


def test_binary_version_with_one_training_file_is_refused(tmp_path: Path) -> None:
    written(tmp_path, "data_batch_1.bin", 2)
    with pytest.raises(CalibrationError, match=r"data_batch_2\.bin"):
        read_cifar10_binary(tmp_path, "train")


def test_the_pickled_version_is_never_loaded(tmp_path: Path) -> None:
    (tmp_path / "test_batch").write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(CalibrationError, match=r"never loads pickles.*cifar-10-binary\.tar\.gz"):
        read_cifar10_binary(tmp_path)


def test_damaged_binary_files(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"there is no .*test_batch\.bin"):
        read_cifar10_binary(tmp_path)
    written(tmp_path, "test_batch.bin", 3)
    content = (tmp_path / "test_batch.bin").read_bytes()
    for bad in (content[:-1], b""):
        (tmp_path / "test_batch.bin").write_bytes(bad)
        with pytest.raises(CalibrationError, match="truncated"):
            read_cifar10_binary(tmp_path)
    (tmp_path / "test_batch.bin").write_bytes(b"\x63" + content[1:])
    with pytest.raises(CalibrationError, match=r"label 99.*CIFAR-100"):
        read_cifar10_binary(tmp_path)
