"""`load_weights` against files written by safetensors and by torch.save."""

import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from isobit.core.errors import WeightsError
from isobit.core.weights import load_weights, read_weights


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3, bias=False)
        self.second = nn.Linear(3, 3, bias=False)
        self.second.weight = self.first.weight


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


def saved(path: Path, **changes: torch.Tensor | None) -> Path:
    state = network().state_dict()
    for key, value in changes.items():
        name = key.replace("_", ".", 1)
        state = {**state, name: value} if value is not None else {k: v for k, v in state.items() if k != name}
    save_file(state, path)
    return path


def refused(model: nn.Module, path: Path) -> str:
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(WeightsError) as error:
        load_weights(model, path)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    return str(error.value)


def test_every_tensor_arrives(tmp_path: Path) -> None:
    source, target = network(), network()
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    load_weights(target, tmp_path / "w.safetensors")
    assert all(torch.equal(v, target.state_dict()[k]) for k, v in source.state_dict().items())


def test_the_batch_counter_may_be_absent_and_half_precision_is_widened(tmp_path: Path) -> None:
    weight = torch.randn(2, 4).half()
    path = saved(tmp_path / "w.safetensors", **{"1_num_batches_tracked": None, "3_weight": weight})
    model = network()
    load_weights(model, path)
    assert model[3].weight.dtype == torch.float32
    assert torch.equal(model[3].weight, weight.float())


def test_a_shared_weight_may_have_one_name_in_the_file(tmp_path: Path) -> None:
    weight = torch.randn(3, 3)
    save_file({"second.weight": weight}, tmp_path / "w.safetensors")
    model = Tied()
    load_weights(model, tmp_path / "w.safetensors")
    assert torch.equal(model.first.weight, weight)


def test_missing_and_unexpected_keys_are_named_with_the_nearest(tmp_path: Path) -> None:
    state = {k: v for k, v in network().state_dict().items() if k != "3.weight"}
    save_file({**state, "3.weigth": torch.zeros(2, 4)}, tmp_path / "w.safetensors")
    text = refused(network(), tmp_path / "w.safetensors")
    assert "1 missing from the file: 3.weight (nearest: 3.weigth)" in text
    assert "1 unknown to the network: 3.weigth (nearest: 3.weight)" in text


def test_a_shape_that_differs_is_named_with_both_shapes(tmp_path: Path) -> None:
    text = refused(network(), saved(tmp_path / "w.safetensors", **{"3_weight": torch.zeros(2, 5)}))
    assert "3.weight: (2, 5) in the file, (2, 4) in the network" in text


@pytest.mark.parametrize(("value", "kind"), [(float("nan"), "NaN"), (float("inf"), "Inf"), (-float("inf"), "Inf")])
def test_a_weight_that_is_not_finite_is_named(tmp_path: Path, value: float, kind: str) -> None:
    weight = torch.zeros(2, 4)
    weight[1, 2] = value
    text = refused(network(), saved(tmp_path / "w.safetensors", **{"3_weight": weight}))
    assert f"3.weight in {tmp_path / 'w.safetensors'} holds {kind} (1 of 8 values)" in text


def test_a_double_that_overflows_the_network_is_inf(tmp_path: Path) -> None:
    weight = torch.full((2, 4), 1e300, dtype=torch.float64)
    assert "holds Inf (8 of 8" in refused(network(), saved(tmp_path / "w.safetensors", **{"3_weight": weight}))


def test_integers_are_no_floats(tmp_path: Path) -> None:
    text = refused(network(), saved(tmp_path / "w.safetensors", **{"3_weight": torch.zeros(2, 4, dtype=torch.int8)}))
    assert "3.weight" in text
    assert "torch.int8" in text


@pytest.mark.parametrize("name", ["w.pt", "w.pth", "w.safetensors"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_is_never_loaded_and_the_error_says_how_to_convert(tmp_path: Path, name: str, zipped: bool) -> None:
    torch.save(network().state_dict(), tmp_path / name, _use_new_zipfile_serialization=zipped)
    text = refused(network(), tmp_path / name)
    assert "is a pickle" in text
    assert "safetensors.torch.save_file" in text


def test_a_header_that_looks_like_a_pickle_is_no_pickle(tmp_path: Path) -> None:
    header = b'{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'.ljust(0x0280)
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + struct.pack("<f", 2.5))
    assert read_weights(tmp_path / "w.safetensors")["x"].tolist() == [2.5]


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_truncated_file_is_refused(tmp_path: Path, keep: int) -> None:
    path = saved(tmp_path / "w.safetensors")
    path.write_bytes(path.read_bytes()[:keep])
    assert "not a whole safetensors file" in refused(network(), path)


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    assert "there is no weights file" in refused(network(), tmp_path / "w.safetensors")
    assert "is a folder" in refused(network(), tmp_path)
