"""The zoo: networks of our own definition, with the key names of the weights that others published."""

from collections.abc import Callable

from torch import nn

from isobit.benchmark.models.bert import bert_base, bert_tiny
from isobit.benchmark.models.cifar_resnet import cifar10_resnet20, cifar10_resnet32, cifar10_resnet56
from isobit.benchmark.models.digits import DigitsResNet
from isobit.benchmark.models.mobilenet_v2 import MobileNetV2, mobilenet_v2_folded, mobilenet_v2_symmetric
from isobit.benchmark.models.resnet import resnet18, resnet34, resnet50
from isobit.benchmark.models.squeezenet import squeezenet1_1
from isobit.benchmark.models.tiny_resnet8 import TinyResNet8
from isobit.benchmark.models.vit import vit_b16, vit_tiny

MODELS: dict[str, Callable[[], nn.Module]] = {
    "bert_base": bert_base,
    "bert_tiny": bert_tiny,
    "cifar10_resnet20": cifar10_resnet20,
    "cifar10_resnet32": cifar10_resnet32,
    "cifar10_resnet56": cifar10_resnet56,
    "digits_resnet": DigitsResNet,
    "mobilenet_v2": MobileNetV2,
    "mobilenet_v2_folded": mobilenet_v2_folded,
    "mobilenet_v2_symmetric": mobilenet_v2_symmetric,
    "resnet18": resnet18,
    "resnet34": resnet34,
    "resnet50": resnet50,
    "squeezenet1_1": squeezenet1_1,
    "tiny_resnet8": TinyResNet8,
    "vit_b16": vit_b16,
    "vit_tiny": vit_tiny,
}
