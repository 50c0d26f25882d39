"""Networks trained by others, on real data: the images right are those of the data folder's README."""

from pathlib import Path

import pytest

from isobit.analysis.accuracy import accuracy
from isobit.benchmark.models import MODELS
from isobit.benchmark.pretrained import PRETRAINED, pretrained
from isobit.core.errors import UnknownNameError
from isobit.core.weights import load_weights

RIGHT = {"cifar10_resnet20": (915, 1000), "cifar10_resnet56": (926, 1000), "tiny_resnet8": (881, 1000)}
RIGHT_SLOW = {"mobilenet_v2": (455, 500), "mobilenet_v2_folded": (455, 500), "squeezenet1_1": (337, 500)}


@pytest.mark.parametrize("name", RIGHT)
def test_cifar_accuracy_is_the_published_one(shared_data: Path, name: str) -> None:
    row = pretrained(name)
    assert accuracy(row.load(), row.evaluation()) == RIGHT[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", RIGHT_SLOW)
def test_imagenet_accuracy_is_the_published_one(shared_data: Path, name: str) -> None:
    row = pretrained(name)
    assert accuracy(row.load(), row.evaluation()) == RIGHT_SLOW[name]


@pytest.mark.parametrize("name", RIGHT_SLOW)
def test_imagenet_weights_load_and_recognise_a_few_images(shared_data: Path, name: str) -> None:
    row = pretrained(name)
    right, total = accuracy(row.load(), row.evaluation().every(50))
    assert total == 10
    assert right >= 4  # 91 and 67 % on all 500; guessing gives 0


@pytest.mark.parametrize("name", PRETRAINED)
def test_calibration_and_evaluation_fit_the_network(shared_data: Path, name: str) -> None:
    row = pretrained(name)
    calibration, evaluation = row.calibration(), row.evaluation()
    (x, _), (z, _) = (next(iter(data.batched(2))) for data in (calibration, evaluation))
    assert x.shape == z.shape
    assert row.load()(x).shape[0] == 2


def test_symmetric_padding_loads_the_same_weights(shared_data: Path) -> None:
    model = MODELS["mobilenet_v2_symmetric"]()
    load_weights(model, shared_data / "weights" / "mobilenet_v2_1.0_224_tf_bn.safetensors")


def test_a_misspelt_name_gets_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'cifar10_resnet20'"):
        pretrained("cifar_resnet20")
