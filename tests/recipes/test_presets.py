"""Presets are read, prepare the network that they name and train it a step; their numbers are those of the sources."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import isobit
from isobit.benchmark.data.training_set import TrainingSet
from isobit.cli.loading import load_model
from isobit.graph.insert import slots
from isobit.quantizers import Slb
from isobit.recipes.codec import read_recipe
from isobit.recipes.training import TrainingRecipe
from isobit.recipes.workflow import prepare_with_recipe

FOLDER = Path(__file__).parents[2] / "recipes" / "presets"
PRESETS = {path.stem: path for path in sorted(FOLDER.glob("*.toml"))}
SMALL = [n for n in PRESETS if "imagenet" not in n]


def test_they_are_there() -> None:
    assert {n.split("_")[0] for n in PRESETS} == {"mqbench", "slb", "ten"}


@pytest.mark.parametrize("name", PRESETS)
def test_it_says_where_it_comes_from_and_how_it_is_run(name: str) -> None:
    text = PRESETS[name].read_text()
    assert re.search(r"arXiv:\d{4}\.\d{5}|user guide", text)
    assert re.search(rf"^#   isobit train recipes/presets/{name}\.toml -o runs/", text, re.M)
    recipe = read_recipe(TrainingRecipe, PRESETS[name])
    assert recipe.quantization is not None
    recipe.quantization.post_training()


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in SMALL else [pytest.mark.slow]) for n in PRESETS])
def test_it_trains_a_step(name: str, tmp_path: Path) -> None:
    pytest.importorskip("lightning", reason="Lightning is not installed")
    recipe = read_recipe(TrainingRecipe, PRESETS[name])
    assert recipe.quantization is not None
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(8, 3, 32, 32, generator=generator), torch.arange(8) % 10
    data = TrainingSet([(x, y)], batch_size=8, crop=min(recipe.augmentation.crop, 4), mirror=recipe.augmentation.mirror)
    net = load_model(recipe.network)
    isobit.recalibrate_batch_norm(net, [x])  # without, an untrained MobileNetV2 hands on nearly nothing
    model = prepare_with_recipe(net, x[:1], recipe.quantization)
    isobit.calibrate(model, [x])
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    settings = replace(recipe.training, epochs=1, warmup_epochs=0.0, bn_recalibration=1)
    record = isobit.train(model, data, [(x, y)], settings, folder=tmp_path)
    assert record.last is not None
    assert not record.not_converged
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved
    learned = not name.startswith("ten_per_cent")  # whose scales stay as calibrated
    assert any("weight_slot" in n for n in moved) == learned
    assert all(slot.mode == "quantize" for slot in slots(model))


def schedule(name: str) -> tuple[float, ...]:
    recipe = read_recipe(TrainingRecipe, PRESETS[name])
    t = recipe.training
    return t.epochs, recipe.batch_size, t.learning_rate, t.weight_decay, t.warmup_epochs, t.label_smoothing


def test_mqbench_has_the_schedule_of_its_table() -> None:
    for name in PRESETS:
        if name.startswith("mqbench"):
            rate, decay = (0.01, 1e-5) if "mobilenet" in name else (0.004, 1e-4)
            assert schedule(name) == (100, 512, rate, decay, 1.0, 0.1)


def test_ten_per_cent_of_the_schedule_from_one_per_cent_of_the_rate() -> None:
    original = read_recipe(TrainingRecipe, FOLDER.parent / "cifar10_resnet20_float.toml").training
    recipe = read_recipe(TrainingRecipe, PRESETS["ten_per_cent_cifar10_resnet20"])
    assert recipe.training.epochs == round(original.epochs / 10)
    assert recipe.training.learning_rate == pytest.approx(original.learning_rate / 100)
    assert recipe.calibration_batches * recipe.batch_size == 1024


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_slb_has_golden_sticks_temperature(bits: int) -> None:
    recipe = read_recipe(TrainingRecipe, PRESETS[f"slb_cifar10_resnet20_w{bits}a8"])
    assert schedule(f"slb_cifar10_resnet20_w{bits}a8") == (100, 32, 0.1, 1e-4, 5.0, 0.1)
    assert recipe.quantization is not None
    settings = recipe.quantization.preparing().weight
    assert isinstance(settings, Slb)
    start, end = (int(recipe.training.epochs * t) for t in (0.2, 0.6))
    assert (settings.begin, settings.freeze, settings.pretrained) == (0.2, 0.6, False)
    assert settings.sharpest == pytest.approx(1.2 ** (end - start), rel=1e-5)
    model = prepare_with_recipe(load_model(recipe.network), torch.randn(2, 3, 32, 32), recipe.quantization)
    searched = {s.point for s in slots(model) if s.point.endswith("weight") and "Slb" in type(s.quantizer).__name__}
    convolutions = {f"{n}.weight" for n, m in model.named_modules() if isinstance(m, torch.nn.Conv2d)}
    assert searched == convolutions
    assert {s.quantizer.scheme.bits for s in slots(model) if s.point in searched} == {bits}  # type: ignore[union-attr]
