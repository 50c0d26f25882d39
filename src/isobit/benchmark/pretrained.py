"""The networks with published weights in the data folder, and the data that each is evaluated on."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import nn

from isobit.benchmark.data.cifar10 import read_cifar10
from isobit.benchmark.data.dataset import Dataset
from isobit.benchmark.data.imagenet_sample import read_imagenet_sample
from isobit.benchmark.data.location import data_file
from isobit.benchmark.models import MODELS
from isobit.core.errors import UnknownNameError
from isobit.core.weights import load_weights


@dataclass(frozen=True, kw_only=True, slots=True)
class Pretrained:
    """A row: the network in `MODELS`, its weights file, its data, and how pixels are normalised for it."""

    network: str
    weights: str
    data: Literal["cifar10", "imagenet_sample"]
    normalize: str

    def load(self) -> nn.Module:
        """The network with its weights, in eval mode. Raises CalibrationError where the file is missing."""
        model = MODELS[self.network]()
        load_weights(model, data_file(f"weights/{self.weights}.safetensors"))
        return model.eval()

    def calibration(self) -> Dataset:
        """512 training images of CIFAR-10, or every 8th image of the ImageNet sample (63)."""
        if self.data == "cifar10":
            return read_cifar10("train", normalize=self.normalize).take(512)
        return read_imagenet_sample(normalize=self.normalize).every(8)

    def evaluation(self) -> Dataset:
        """The 1,000 test images of CIFAR-10's lossless subset, or all 500 of the ImageNet sample.

        The ImageNet sample has no second part: where a result must not have seen its calibration images, evaluate on
        `evaluation().without(calibration())`, 437 images, and say so beside the number.
        """
        return _EVALUATION[self.data](self.normalize)


_EVALUATION: dict[str, Callable[[str], Dataset]] = {
    "cifar10": lambda normalize: read_cifar10("test", normalize=normalize),
    "imagenet_sample": lambda normalize: read_imagenet_sample(normalize=normalize),
}

PRETRAINED: dict[str, Pretrained] = {
    "cifar10_resnet20": Pretrained(
        network="cifar10_resnet20", weights="cifar10_resnet20", data="cifar10", normalize="torch"
    ),
    "cifar10_resnet56": Pretrained(
        network="cifar10_resnet56", weights="cifar10_resnet56", data="cifar10", normalize="torch"
    ),
    "tiny_resnet8": Pretrained(
        network="tiny_resnet8", weights="cifar10_resnet8_mlperf_tiny", data="cifar10", normalize="pixels"
    ),
    "mobilenet_v2": Pretrained(
        network="mobilenet_v2", weights="mobilenet_v2_1.0_224_tf_bn", data="imagenet_sample", normalize="tf"
    ),
    "mobilenet_v2_folded": Pretrained(
        network="mobilenet_v2_folded", weights="mobilenet_v2_1.0_224_tf_folded", data="imagenet_sample", normalize="tf"
    ),
    "squeezenet1_1": Pretrained(
        network="squeezenet1_1", weights="squeezenet1_1", data="imagenet_sample", normalize="torch"
    ),
}


def pretrained(name: str) -> Pretrained:
    """The row of that name. Raises UnknownNameError with the nearest one."""
    if name not in PRETRAINED:
        raise UnknownNameError("pretrained network", name, PRETRAINED)
    return PRETRAINED[name]
