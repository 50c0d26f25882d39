"""The zoo: networks of our own definition, with the key names of the weights that others published."""

from collections.abc import Callable

from torch import nn

from isobit.benchmark.models.cifar_resnet import cifar10_resnet20, cifar10_resnet32, cifar10_resnet56

MODELS: dict[str, Callable[[], nn.Module]] = {
    "cifar10_resnet20": cifar10_resnet20,
    "cifar10_resnet32": cifar10_resnet32,
    "cifar10_resnet56": cifar10_resnet56,
}
