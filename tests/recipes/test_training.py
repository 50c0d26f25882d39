"""Training recipes: what goes together, and which ones describe the same run."""

from dataclasses import replace
from typing import Any

import pytest

from isobit.algorithms.training import Hardware, Training
from isobit.core.errors import SettingError
from isobit.recipes.training import TrainingRecipe

NAMES = {"network": "net.py:net", "data": "digits:train", "evaluation": "digits:test"}


def recipe(**settings: Any) -> TrainingRecipe:
    return TrainingRecipe(**{**NAMES, **settings})


@pytest.mark.parametrize(
    "training", [Training(distillation=0.5), Training(feature_distillation=1.0), Training(labels=False)]
)
def test_distillation_has_a_teacher(training: Training) -> None:
    with pytest.raises(SettingError, match="distillation needs a teacher: name one, or give the weights"):
        recipe(training=training)
    recipe(training=training, weights="net.safetensors")
    recipe(training=training, teacher="other.py:net")
    recipe(training=training, network="cifar10_resnet20")  # a pretrained one


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"teacher": "net.py:net"}, "a teacher is named, and nothing is learned from it"),
        ({"teacher_weights": "a.safetensors"}, "teacher_weights are given, and no teacher"),
        ({"format": 2}, "recipes of format 1, this one has format 2"),
        ({"hardware": Hardware(devices=3)}, "batch_size = 128 cannot be shared evenly by 3 processes"),
        ({"calibration_batches": 0}, "calibration_batches has to be at least 1, got 0"),
    ],
)
def test_recipes_that_make_no_sense(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingError, match=says):
        recipe(**settings)


def test_which_recipes_describe_the_same_run() -> None:
    one = recipe()
    assert one.same_result(replace(one, notes=("a first try",)))
    assert not one.same_result(replace(one, training=Training(epochs=3)))
    assert one.same_result(replace(one, hardware=Hardware(accelerator="cpu", devices=4), tensorboard=True))
    assert not one.same_result(replace(one, batch_size=64))
