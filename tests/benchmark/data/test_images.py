"""Images on disk against Pillow by hand, PyTorch's antialiased resize and torchvision's rules."""

import io
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from isobit.benchmark.data import NORMALIZATIONS, Normalization, read_image_folder, read_imagenet_sample
from isobit.benchmark.data.image_folder import class_names
from isobit.benchmark.data.images import center_crop, resize_shorter
from isobit.core.errors import CalibrationError, MissingExtraError, SettingError, UnknownNameError

Image = pytest.importorskip("PIL.Image")


def picture(width: int, height: int, seed: int = 0) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def folder_of(root: Path, **files: np.ndarray) -> Path:
    for name, pixels in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path.with_suffix(".png"))
    return root


def test_classes_are_the_sorted_folder_names(tmp_path: Path) -> None:
    pixels = {"b__1": picture(8, 8, 1), "a__2": picture(8, 8, 2), "b__sub__0": picture(8, 8, 3), "B__3": picture(8, 8)}
    folder_of(tmp_path, **pixels)
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "notes.txt").write_text("no image")
    assert class_names(tmp_path) == ["B", "a", "b"]
    [(x, y)] = read_image_folder(tmp_path, resize=None, crop=None, normalize="pixels")
    assert y.tolist() == [0, 1, 2, 2]
    expected = [pixels[name] for name in ("B__3", "a__2", "b__1", "b__sub__0")]
    assert np.array_equal(x.numpy(), np.stack(expected).transpose(0, 3, 1, 2))


@pytest.mark.parametrize(("width", "height", "size"), [(50, 30, 20), (30, 50, 20), (31, 31, 16), (33, 47, 64)])
def test_resize_is_the_antialiased_bilinear_of_pytorch(width: int, height: int, size: int) -> None:
    pixels = picture(width, height)
    ours = np.asarray(resize_shorter(Image.fromarray(pixels), size))
    short, long = min(width, height), max(width, height)
    other = int(size * long / short)  # torchvision's rule
    target = (other, size) if height >= width else (size, other)
    tensor = torch.from_numpy(pixels.transpose(2, 0, 1).copy())[None].float()
    theirs = F.interpolate(tensor, target, mode="bilinear", antialias=True)[0].numpy().transpose(1, 2, 0)
    assert ours.shape == theirs.shape
    assert float(np.abs(ours - theirs).max()) <= 1.01  # Pillow rounds after each axis


@pytest.mark.parametrize(("width", "height", "left", "top"), [(10, 9, 3, 2), (9, 12, 2, 4), (4, 4, 0, 0), (7, 5, 2, 0)])
def test_center_crop(width: int, height: int, left: int, top: int) -> None:
    pixels = picture(width, height)
    cropped = center_crop(Image.fromarray(pixels), 4, name="it")
    assert np.array_equal(cropped, pixels[top : top + 4, left : left + 4])


def test_grey_and_transparent_images_become_rgb(tmp_path: Path) -> None:
    grey = np.full((8, 8), 7, np.uint8)
    (tmp_path / "c").mkdir()
    Image.fromarray(grey).save(tmp_path / "c" / "0.png")
    Image.fromarray(np.dstack([grey, grey + 1, grey + 2, grey + 100])).save(tmp_path / "c" / "1.png")
    [(x, _)] = read_image_folder(tmp_path, resize=8, crop=8, normalize="pixels")
    assert x[:, :, 0, 0].tolist() == [[7, 7, 7], [7, 8, 9]]


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("torch", lambda x: (x / 255 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])),
        ("tf", lambda x: x / 127.5 - 1),
        ("unit", lambda x: x / 255),
        ("pixels", lambda x: x),
    ],
)
def test_normalization_is_its_formula(name: str, formula: object) -> None:
    x = np.arange(256 * 3, dtype=np.int64).reshape(1, 16, 16, 3) % 256
    ours = NORMALIZATIONS[name].apply(x.astype(np.uint8)).numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(ours, formula(x.astype(np.float64)), rtol=1e-6, atol=1e-6)


def test_the_users_own_normalization(tmp_path: Path) -> None:
    folder_of(tmp_path, c__0=picture(8, 8))
    own = Normalization(mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0))
    [(x, _)] = read_image_folder(tmp_path, resize=8, crop=8, normalize=own)
    expected = (picture(8, 8) / 255 - np.array([0.1, 0.2, 0.3])) / np.array([0.5, 0.25, 2.0])
    np.testing.assert_allclose(x[0].numpy().transpose(1, 2, 0), expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(UnknownNameError, match="did you mean 'torch'"):
        read_image_folder(tmp_path, normalize="torhc")


def test_a_normalization_that_cannot_be_is_refused() -> None:
    with pytest.raises(SettingError, match="std"):
        Normalization(std=(0.2, 0.0, 0.2))
    with pytest.raises(SettingError, match="divisor"):
        Normalization(divisor=0.0)
    with pytest.raises(SettingError, match="2 values of mean and 3 of std"):
        Normalization(mean=(0.1, 0.2), std=(1.0, 1.0, 1.0))
    with pytest.raises(CalibrationError, match="2 channels"):
        Normalization(mean=(0.1, 0.2)).apply(np.zeros((1, 2, 2, 3), np.uint8))


def test_folders_that_hold_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="there is no image folder"):
        read_image_folder(tmp_path / "nowhere")
    with pytest.raises(CalibrationError, match="holds no class folders"):
        read_image_folder(tmp_path)
    folder_of(tmp_path, flat=picture(8, 8))
    with pytest.raises(CalibrationError, match=r"images but no class folders.*one folder per class"):
        read_image_folder(tmp_path)
    (tmp_path / "cats").mkdir()
    (tmp_path / "cats" / "readme.txt").write_text("soon")
    with pytest.raises(CalibrationError, match=r"cats holds no images"):
        read_image_folder(tmp_path)


@pytest.mark.parametrize("content", [b"", b"not an image", b"half"])
def test_an_image_that_cannot_be_decoded_is_named(tmp_path: Path, content: bytes) -> None:
    if content == b"half":
        whole = io.BytesIO()
        Image.fromarray(picture(64, 64)).save(whole, "JPEG")
        content = whole.getvalue()[: len(whole.getvalue()) // 2]
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "broken.jpg").write_bytes(content)
    with pytest.raises(CalibrationError, match=r"broken\.jpg cannot be decoded"):
        list(read_image_folder(tmp_path))


def test_sizes_that_do_not_fit(tmp_path: Path) -> None:
    folder_of(tmp_path, c__0=picture(8, 8), c__1=picture(9, 8))
    with pytest.raises(SettingError, match="crop of 300"):
        read_image_folder(tmp_path, crop=300)
    with pytest.raises(CalibrationError, match=r"0\.png has 8 x 8 pixels"):
        list(read_image_folder(tmp_path, resize=None, crop=100))
    with pytest.raises(CalibrationError, match="differ in size"):
        list(read_image_folder(tmp_path, resize=None, crop=None))


def test_without_pillow_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingExtraError, match=r"Pillow is not installed.*isobit\[images\]"):
        read_image_folder(tmp_path)


def test_imagenet_sample(shared_data: Path) -> None:
    data = read_imagenet_sample(normalize="pixels", batch_size=2)
    assert data.samples == 500
    x, y = next(iter(data.every(250)))
    assert y.tolist() == [0, 250]
    assert x.shape == (2, 3, 224, 224)
    with np.load(shared_data / "imagenet_sample" / "imagenet_sample_0.npz") as file:
        end = int(file["offset"][1])
        whole = np.asarray(Image.open(io.BytesIO(file["jpeg"][:end].tobytes())).convert("RGB"))
    top, left = round((whole.shape[0] - 224) / 2), round((whole.shape[1] - 224) / 2)
    expected = whole[top : top + 224, left : left + 224].transpose(2, 0, 1)
    assert np.array_equal(x[0].numpy(), expected)
