"""References to networks and data: what they may be, and what is read of it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from isobit.cli.data import Reading, load_data
from isobit.cli.loading import check_fits, explained, find, load_model
from isobit.core.batches import as_batch
from isobit.core.errors import CalibrationError, ModelError

READING = Reading(batch_size=5)


def inputs(data: object) -> torch.Tensor:
    return torch.cat([as_batch(item).inputs[0] for item in data])  # type: ignore[attr-defined]


@pytest.mark.parametrize("reference", ["nets.py:net", "nets.py:module", "nets:net", "package.inner:net", "nets.py:Net"])
def test_networks(here: Path, monkeypatch: pytest.MonkeyPatch, reference: str) -> None:
    (here / "package").mkdir()
    (here / "package" / "inner.py").write_text("from nets import net\n")
    (here / "package" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(here))
    for name in ("nets", "package", "package.inner"):
        monkeypatch.delitem(__import__("sys").modules, name, raising=False)
    net = load_model(reference)
    assert type(net).__name__ == "Net"
    assert not any(m.training for m in net.modules())
    assert net(torch.zeros(2, 3, 8, 8)).shape == (2, 4)


def test_weights_are_loaded(here: Path) -> None:
    from safetensors.torch import load_file

    net = load_model("nets.py:Net", here / "net.safetensors")
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in load_file(here / "net.safetensors").items())


def test_a_pretrained_network(shared_data: Path) -> None:
    net = load_model("cifar10_resnet20")
    assert sum(p.numel() for p in net.parameters()) == 269_722


def test_a_file_is_read_once_and_finds_its_neighbours(here: Path) -> None:
    (here / "uses.py").write_text(
        "from nets import net\ncount = []\n\ndef counted():\n    count.append(1)\n    return net()\n"
    )
    load_model("uses.py:counted")
    load_model("./uses.py:counted")
    assert find("uses.py:count", error=ModelError) == [1, 1]


def test_the_innermost_line_of_the_users_own_code_is_named(here: Path) -> None:
    with pytest.raises(CalibrationError, match=r"nets\.py:15: .*expected input") as caught:
        check_fits(load_model("nets.py:net"), "nets.py:net", [torch.zeros(2, 1, 8, 8)])
    assert "linear" not in str(caught.value)
    try:
        torch.zeros(2) @ torch.zeros(3)
    except RuntimeError as error:
        assert f"test_loading.py:{error.__traceback__.tb_lineno}" in explained(error)  # type: ignore[union-attr]


def test_an_array_file_is_spread_evenly(here: Path) -> None:
    np.savez(here / "count.npz", x=np.arange(32, dtype=np.float32).reshape(32, 1), y=np.arange(32))
    data = load_data("count.npz", READING, samples=8)
    assert inputs(data).flatten().tolist() == [0, 4, 8, 12, 16, 20, 24, 28]
    assert (data.text, data.samples, data.batches) == ("8 of 32 samples of count.npz", 8, 2)
    assert data.labelled()
    whole = load_data("count.npz", READING, samples=100)
    assert (whole.text, whole.samples, whole.batches) == ("32 samples of count.npz", 32, 7)


@pytest.mark.parametrize("reference", ["data.py:good", "data.py:stream"])
def test_batches_of_a_function_can_be_read_again(here: Path, reference: str) -> None:
    data = load_data(reference, READING)
    first = inputs(data)
    assert first.shape == (32, 3, 8, 8)
    assert torch.equal(inputs(data), first)
    assert data.labelled()


@pytest.mark.parametrize("reference", ["data.py:good", "data.py:stream"])
def test_as_many_samples_as_wanted(here: Path, reference: str) -> None:
    data = load_data(reference, READING, samples=19)
    assert torch.equal(inputs(data), inputs(load_data(reference, READING))[:19])
    assert [as_batch(item).size for item in data] == [8, 8, 3]
    assert data.batches == 3  # known once the first batch was read
    labels = [as_batch(item).labels for item in data]
    assert [len(x) for x in labels if x is not None] == [8, 8, 3]


def test_a_function_is_called_once_unless_it_gives_a_generator(here: Path) -> None:
    text = "import torch\ncalls = []\n\ndef {}():\n    calls.append(1)\n    return {}\n"
    (here / "many.py").write_text(text.format("many", "[torch.rand(4, 2)]"))
    (here / "once.py").write_text(text.format("once", "iter([torch.rand(4, 2)])"))
    for name, calls in (("many", 1), ("once", 3)):
        data = load_data(f"{name}.py:{name}", READING)
        for _ in range(3):
            assert len(list(data)) == 1
        assert len(find(f"{name}.py:calls", error=CalibrationError)) == calls


def test_a_tensor_is_one_batch(here: Path) -> None:
    data = load_data("data.py:tensor", READING, samples=10)
    assert [as_batch(item).size for item in data] == [10]


def test_progress_of_data(here: Path) -> None:
    calls: list[tuple[str, int, int | None]] = []
    data = load_data("data.py:good", READING)
    assert len(list(data.watched(lambda *call: calls.append(call), "reading"))) == 4
    assert calls == [("reading", i, 4) for i in range(1, 5)]
    data.counted(lambda *call: calls.append(call))("calibrating", 2, None)
    assert calls[-1] == ("calibrating", 2, 4)


def test_images(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    for label, name in enumerate(("cat", "dog")):
        (tmp_path / name).mkdir()
        for i in range(3):
            image.new("RGB", (20, 16), (100 * label, 10 * i, 0)).save(tmp_path / name / f"{i}.png")
    data = load_data(str(tmp_path), Reading(resize=16, crop=0, normalize="pixels", batch_size=2), samples=2)
    (batch,) = [as_batch(item) for item in data]
    assert batch.labels is not None and batch.labels.tolist() == [0, 1]  # one of each class
    assert batch.inputs[0].shape == (2, 3, 16, 20)
    assert batch.inputs[0][1, 0, 0, 0] == 100


def test_built_in_digits() -> None:
    pytest.importorskip("sklearn")
    assert load_data("digits:test", READING, samples=10).text == "10 of 450 samples of digits test"
    assert check_fits(nn.Flatten(), "flatten", load_data("digits:train", READING)) is None
