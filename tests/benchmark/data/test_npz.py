"""A user's `.npz` against numpy's own reading of it."""

from pathlib import Path

import numpy as np
import pytest
import torch

from isobit.benchmark.data import read_npz
from isobit.benchmark.data.arrays import read_arrays
from isobit.core.errors import CalibrationError

X = np.random.default_rng(0).normal(size=(10, 3, 4, 4)).astype(np.float32)
Y = np.arange(10) % 3


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("names", [("x", "y"), ("images", "labels")])
def test_floats_as_they_are(tmp_path: Path, save: object, names: tuple[str, str]) -> None:
    save(tmp_path / "d.npz", **dict(zip(names, (X, Y), strict=True)))
    batches = list(read_npz(tmp_path / "d.npz", batch_size=4))
    assert [len(x) for x, _ in batches] == [4, 4, 2]
    assert np.array_equal(np.concatenate([x.numpy() for x, _ in batches]), X)
    assert np.array_equal(np.concatenate([y.numpy() for _, y in batches]), Y)
    assert (batches[0][0].dtype, batches[0][1].dtype) == (torch.float32, torch.int64)


@pytest.mark.parametrize(
    "array",
    [
        X.astype(np.float64),
        X.astype(np.float16),
        X.astype(">f4"),
        np.asfortranarray(X),
        np.arange(20, dtype=np.int64).reshape(5, 4),
    ],
    ids=["f8", "f2", "big-endian", "fortran", "i8"],
)
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_other_numbers_and_orders(tmp_path: Path, save: object, array: np.ndarray) -> None:
    save(tmp_path / "d.npz", before=np.arange(7), x=array, after=np.arange(3))
    [(x,)] = read_npz(tmp_path / "d.npz")
    assert np.array_equal(x.numpy(), array.astype(x.numpy().dtype))
    assert x.dtype == (torch.int64 if array.dtype.kind == "i" else torch.float32)


def test_a_stored_array_is_mapped_and_a_compressed_one_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "stored.npz", x=X)
    np.savez_compressed(tmp_path / "compressed.npz", x=X)
    assert isinstance(read_arrays(tmp_path / "stored.npz", ["x"])["x"], np.memmap)
    assert not isinstance(read_arrays(tmp_path / "compressed.npz", ["x"])["x"], np.memmap)


def test_uint8_images_need_to_be_asked_for(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 5, 4, 3), dtype=np.uint8)
    np.savez(tmp_path / "d.npz", x=pixels)
    with pytest.raises(CalibrationError, match=r"is uint8\. Ask for pixels='unit'"):
        read_npz(tmp_path / "d.npz")
    [(x,)] = read_npz(tmp_path / "d.npz", pixels="unit")
    np.testing.assert_allclose(x.numpy(), pixels.transpose(0, 3, 1, 2) / 255, rtol=1e-6)


@pytest.mark.parametrize(
    ("array", "pixels", "text"),
    [
        (np.zeros((2, 3, 8, 8), np.uint8), "unit", r"channels come last: x\.transpose"),
        (np.zeros((2, 8, 8), np.uint8), "unit", r"\(n, h, w, 1\) for grey"),
        (np.zeros((2, 8, 8, 1), np.uint8), "torch", "1 channels, the normalization 3"),
        (X, "unit", "needs uint8"),
        (np.zeros((2, 3), bool), None, "is bool"),
        (np.zeros((2, 3), complex), None, "is complex128"),
        (np.array([["a"]]), None, "is <U1"),
        (np.zeros(3, np.float32), None, r"shape \(3,\)"),
        (np.zeros((0, 3), np.float32), None, r"shape \(0, 3\)"),
        (np.float32(1), None, r"shape \(\)"),
    ],
)
def test_inputs_of_another_kind_are_refused(tmp_path: Path, array: np.ndarray, pixels: str | None, text: str) -> None:
    np.savez(tmp_path / "d.npz", x=array)
    with pytest.raises(CalibrationError, match=text):
        read_npz(tmp_path / "d.npz", pixels=pixels)


@pytest.mark.parametrize(
    ("labels", "text"), [(Y[:9], r"shape \(9,\)"), (Y[:, None], r"\(10, 1\)"), (Y.astype(float), "is float64")]
)
def test_labels_of_another_kind_are_refused(tmp_path: Path, labels: np.ndarray, text: str) -> None:
    np.savez(tmp_path / "d.npz", x=X, y=labels)
    with pytest.raises(CalibrationError, match=text):
        read_npz(tmp_path / "d.npz")


def test_a_missing_array_gets_the_nearest_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", image=X, y=Y)
    with pytest.raises(CalibrationError, match=r"no array x or images; did you mean 'image'"):
        read_npz(tmp_path / "d.npz")
    for name in ("label", "Y", "lables"):
        np.savez(tmp_path / "d.npz", **{"x": X, "weights": Y, name: Y})
        with pytest.raises(CalibrationError, match=f"no labels y or labels; did you mean '{name}'"):
            read_npz(tmp_path / "d.npz")
    np.savez(tmp_path / "d.npz", x=X, weights=Y)
    assert len(next(iter(read_npz(tmp_path / "d.npz")))) == 1


class Bomb:
    def __reduce__(self) -> tuple[object, ...]:
        return (print, ("unpickled!",))


def test_pickles_are_never_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "d.npz", x=np.array([[Bomb()]], dtype=object))
        with pytest.raises(CalibrationError, match="pickled objects are never loaded"):
            read_npz(tmp_path / "d.npz")
    assert "unpickled!" not in capsys.readouterr().out


@pytest.mark.parametrize("keep", [0, 10, 200, -30])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_truncated_file_is_refused(tmp_path: Path, save: object, keep: int) -> None:
    save(tmp_path / "d.npz", x=X)
    content = (tmp_path / "d.npz").read_bytes()
    (tmp_path / "d.npz").write_bytes(content[:keep])
    with pytest.raises(CalibrationError, match="truncated or of another kind"):
        read_npz(tmp_path / "d.npz")


def test_damaged_bytes_inside_a_compressed_array_are_noticed(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "d.npz", x=X)
    content = bytearray((tmp_path / "d.npz").read_bytes())
    content[len(content) // 2] ^= 0xFF
    (tmp_path / "d.npz").write_bytes(content)
    with pytest.raises(CalibrationError, match=r"array 'x' .* cannot be read"):
        read_npz(tmp_path / "d.npz")


def test_other_files(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="there is no data file"):
        read_npz(tmp_path / "d.npz")
    np.save(tmp_path / "d.npy", X)
    with pytest.raises(CalibrationError, match=r"not a whole \.npz file"):
        read_npz(tmp_path / "d.npy")
