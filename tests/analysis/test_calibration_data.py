"""Calibration data: domains that are there are found, none where there is one; equal draws; what the run says."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import isobit
from isobit.analysis.calibration_data import Survey, balanced, domains, split_in_two, surveyed
from isobit.analysis.findings import findings
from isobit.analysis.layers import quantized_layers
from isobit.core.errors import CalibrationError, SettingError


def scenes(count: int, seed: int = 0) -> Tensor:
    """Smooth colour images of any brightness and contrast, in 0 to 1."""
    g = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 6, 6, generator=g) + torch.rand(count, 1, 6, 6, generator=g)
    x = nn.functional.interpolate(coarse, size=(24, 24), mode="bilinear") / 2
    contrast = 0.5 + 0.5 * torch.rand(count, 1, 1, 1, generator=g)
    return (x - 0.5) * contrast + 0.2 + 0.4 * torch.rand(count, 1, 1, 1, generator=g)


def night(x: Tensor) -> Tensor:
    return 0.1 * x


def infrared(x: Tensor) -> Tensor:
    return x.mean(1, keepdim=True).expand_as(x)


def found(*parts: Tensor) -> tuple[Survey, tuple[str, ...]]:
    survey = Survey()
    for x in parts:
        survey.see((x,))
    return survey, survey.findings()


def test_one_domain_is_no_finding() -> None:
    survey, texts = found(*scenes(200).split(32))
    assert texts == ()
    assert survey.domains().sizes == (200,)


@pytest.mark.parametrize("shift", [night, infrared])
@pytest.mark.parametrize("normalized", [False, True])
def test_two_domains_are_told_apart_exactly(shift: object, normalized: bool) -> None:
    x = scenes(160)
    x = torch.cat([x[:120], shift(x[120:])])  # type: ignore[operator]
    order = torch.randperm(160, generator=torch.Generator().manual_seed(0))
    x = x[order]
    if normalized:
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        x = (x - mean) / std
    survey, (text,) = found(x)
    assert sorted(survey.domains().sizes) == [40, 120]
    assert len(survey.domains().of[order >= 120].unique()) == 1
    assert "mix 2 domains" in text
    assert "--balance" in text
    assert ("colour" if shift is infrared else "channel") in text


def test_three_domains() -> None:
    x = scenes(180)
    survey, (text,) = found(torch.cat([x[:60], night(x[60:120]), infrared(x[120:])]))
    assert sorted(survey.domains().sizes) == [60, 60, 60]
    assert "See that none is missing" in text  # equally many: nothing to balance


def test_a_few_outliers_are_no_domain() -> None:
    x = scenes(200)
    survey, texts = found(torch.cat([x[:196], night(x[196:])]))
    assert survey.domains().sizes == (200,)
    assert texts == ()


@pytest.mark.parametrize("seed", range(20))
def test_one_mode_is_never_split(seed: int) -> None:
    """Normal, uniform, exponential: the distributions that Otsu's threshold cuts in two by itself."""
    g = torch.Generator().manual_seed(seed)
    for x in (torch.randn(64, generator=g), torch.rand(64, generator=g), torch.rand(64, generator=g).log()):
        assert split_in_two(x, 64) is None


def test_two_modes_are_split_where_the_variance_says_so() -> None:
    """The threshold lies between them and the explained share is the closed form d² / (d² + 4 σ²)."""
    g = torch.Generator().manual_seed(0)
    x = torch.cat([torch.randn(5000, generator=g), 10 + torch.randn(5000, generator=g)])
    split = split_in_two(x, len(x))
    assert split is not None
    assert split[0] == pytest.approx(100 / (100 + 4), rel=0.01)
    assert 4 < split[1] < 6


def test_grey_images_alone_are_one_domain() -> None:
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    assert found((infrared(scenes(200)) - mean) / std)[1] == ()


def test_constant_statistics_have_no_modes() -> None:
    assert domains(torch.zeros(100, 3), ("a", "b", "c")).sizes == (100,)
    assert split_in_two(torch.zeros(4), 4) is None


def test_too_few_and_repeated() -> None:
    (text,) = found(scenes(20))[1]
    assert "20 samples" in text
    frames = scenes(8).repeat(16, 1, 1, 1) + 0.001 * torch.randn(128, 3, 24, 24)
    (text,) = found(frames)[1]
    assert "120 of 128" in text


def test_words_and_vectors_are_counted_and_nothing_more() -> None:
    assert found(torch.zeros(100, 8, dtype=torch.int64))[1] == ()
    assert found(torch.cat([torch.zeros(50, 8), torch.ones(50, 8)]))[1] == ()


def test_equal_draws() -> None:
    x = scenes(160)
    data = [
        (part, torch.arange(160)[i * 40 : i * 40 + 40])
        for i, part in enumerate(torch.cat([x[:130], night(x[130:])]).split(40))
    ]
    chosen = balanced(data, samples=40, batch_size=16)
    labels = torch.cat([b.labels for b in chosen if b.labels is not None])
    assert [b.size for b in chosen] == [16, 16, 8]
    assert int((labels >= 130).sum()) == 20
    assert len(labels.unique()) == 40
    everything = torch.cat([x for x, _ in data])
    assert torch.equal(torch.cat([b.inputs[0] for b in chosen]), everything[labels])
    assert sum(b.size for b in balanced(data)) == 60  # as many as the smaller domain has, of each
    once = balanced(iter(data), samples=40, batch_size=16)
    assert all(torch.equal(a.inputs[0], b.inputs[0]) for a, b in zip(chosen, once, strict=True))


def test_one_domain_is_thinned_out() -> None:
    chosen = balanced([scenes(100)], samples=10)
    assert torch.equal(chosen[0].inputs[0], scenes(100)[::10])


def test_draws_that_cannot_be() -> None:
    x = scenes(100)
    with pytest.raises(SettingError, match="2 domains"):
        balanced([torch.cat([x[:50], night(x[50:])])], samples=1)
    with pytest.raises(CalibrationError, match="empty"):
        balanced([])


def test_the_run_says_so() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval()
    x = scenes(100)
    model = isobit.quantize(net, [torch.cat([x[:70], night(x[70:])])], target="onnxruntime-x86")
    assert any("mix 2 domains" in text for text in findings(model, quantized_layers(model)))
    fine = isobit.quantize(net, [x], target="onnxruntime-x86")
    assert not any("domain" in text or "samples" in text for text in findings(fine, quantized_layers(fine)))
    assert not net._forward_pre_hooks
    assert not model._forward_pre_hooks


def test_a_survey_leaves_no_hook_behind_an_error() -> None:
    net = nn.Linear(3, 2)
    with pytest.raises(RuntimeError), surveyed(net):
        net(torch.zeros(1, 4))
    assert not net._forward_pre_hooks


@pytest.mark.parametrize("name", ["cifar10", "digits", "imagenet"])
def test_no_false_alarm_on_data_of_one_domain(name: str, data_folder: Path) -> None:
    from isobit.benchmark.data import read_cifar10, read_digits, read_imagenet_sample

    if name == "imagenet":
        pytest.importorskip("PIL")
    if name == "digits":
        pytest.importorskip("sklearn")
    data = {
        "cifar10": lambda: read_cifar10("train").take(512),
        "digits": lambda: read_digits("train"),
        "imagenet": lambda: read_imagenet_sample().every(5),
    }[name]()
    assert found(*(x for x, *_ in data))[1] == ()


@pytest.fixture
def data_folder(monkeypatch: pytest.MonkeyPatch) -> Path:
    """`ISOBIT_DATA`, or `../shared/data` beside the repository, or a skip."""
    import os

    folder = Path(os.environ.get("ISOBIT_DATA") or Path(__file__).parents[3] / "shared" / "data")
    if not folder.is_dir():
        pytest.skip("no data folder: set ISOBIT_DATA")
    monkeypatch.setenv("ISOBIT_DATA", str(folder))
    return folder
