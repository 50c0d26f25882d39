"""Weights from safetensors files, loaded strictly; nothing is ever unpickled."""

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from isobit.core.errors import WeightsError
from isobit.core.files import atomic_path

_PICKLE_SUFFIXES = {".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle", ".tar"}
_PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_SHOWN = 5


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load a safetensors file into `model`: the same keys, the same shapes, every value finite.

    Two kinds of key may be absent: `num_batches_tracked` of a BatchNorm, and all but one name of a shared weight.
    Floating types are converted to the network's. The network is untouched when the file is refused.

    Raises WeightsError for a file that is missing, truncated or pickled, for missing and unexpected keys (with the
    nearest match), for shapes and types that differ, and for NaN or Inf.
    """
    path = Path(path)
    given = read_weights(path)
    expected = model.state_dict()
    _check_keys(path, expected, given)
    _check_values(path, expected, given)
    model.load_state_dict(given, strict=False)  # every key is accounted for above


def save_weights(model: nn.Module, path: str | Path) -> None:
    """Write the state of `model` as safetensors, whole or not at all; shared weights under all their names."""
    state = {key: value.detach().cpu().contiguous().clone() for key, value in model.state_dict().items()}
    with atomic_path(path) as temporary:
        save_file(state, temporary)


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file. Raises WeightsError where it is missing, truncated or of another kind."""
    path = Path(path)
    if path.is_dir():
        raise WeightsError(f"{path} is a folder. Name the .safetensors file in it")
    if not path.exists():
        raise WeightsError(f"there is no weights file {path}")
    try:
        with path.open("rb") as file:
            start = file.read(9)
        if _is_pickle(path, start):
            raise WeightsError(
                f"{path} is a pickle, and loading a pickle can run any code, so isobit does not. Where you trust it, "
                f"convert it once: state = torch.load('{path.name}', weights_only=True); safetensors.torch.save_file("
                f"{{k: v.contiguous() for k, v in state.items()}}, '{path.stem}.safetensors')"
            )
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"{path} is not a whole safetensors file (truncated or of another kind): {error}") from error


def _is_pickle(path: Path, start: bytes) -> bool:
    """A safetensors file starts with the length of its header, 8 bytes, which may look like a pickle's start."""
    if start[4:9] == b"\0\0\0\0{":
        return False
    return start.startswith(_PICKLE_STARTS) or path.suffix.lower() in _PICKLE_SUFFIXES


def _check_keys(path: Path, expected: dict[str, Tensor], given: dict[str, Tensor]) -> None:
    places = {_place(expected[k]) for k in given if k in expected}
    missing = [
        k
        for k, x in expected.items()
        if k not in given and not k.endswith("num_batches_tracked") and _place(x) not in places
    ]
    unexpected = [k for k in given if k not in expected]
    if not missing and not unexpected:
        return
    lines = [f"the weights in {path} do not belong to this network."]
    if missing:
        lines.append(f"{len(missing)} missing from the file: {_with_nearest(missing, unexpected)}.")
    if unexpected:
        lines.append(f"{len(unexpected)} unknown to the network: {_with_nearest(unexpected, missing)}.")
    lines.append("Build the network that the file was saved from, or rename the file's keys")
    raise WeightsError("\n".join(lines))


def _place(x: Tensor) -> tuple[int, torch.Size, tuple[int, ...]] | int:
    """Equal for two names of one weight. Empty tensors have no place of their own."""
    return (x.data_ptr(), x.shape, x.stride()) if x.numel() and not x.is_meta else id(x)


def _with_nearest(names: list[str], others: Iterable[str]) -> str:
    others = list(others)
    shown = []
    for name in names[:_SHOWN]:
        near = get_close_matches(name, others, n=1)
        shown.append(f"{name} (nearest: {near[0]})" if near else name)
    return ", ".join(shown) + (", …" if len(names) > _SHOWN else "")


def _check_values(path: Path, expected: dict[str, Tensor], given: dict[str, Tensor]) -> None:
    shapes = [
        f"{key}: {tuple(x.shape)} in the file, {tuple(expected[key].shape)} in the network"
        for key, x in given.items()
        if x.shape != expected[key].shape
    ]
    if shapes:
        more = ", …" if len(shapes) > _SHOWN else ""
        raise WeightsError(f"{len(shapes)} weights in {path} have another shape: {'; '.join(shapes[:_SHOWN])}{more}")
    for key, x in given.items():
        wanted = expected[key].dtype
        if x.is_floating_point() != wanted.is_floating_point:
            raise WeightsError(
                f"{key} in {path} is {x.dtype}, and the network's is {wanted}: convert the file's weight"
            )
        finite = torch.isfinite(x.to(wanted))
        if not bool(finite.all()):
            kind = "NaN" if bool(torch.isnan(x).any()) else "Inf"
            bad = int((~finite).sum())
            raise WeightsError(f"{key} in {path} holds {kind} ({bad} of {x.numel()} values): such a network cannot run")
