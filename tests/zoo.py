"""Tiny seeded networks that between them hold every shape of graph the contract suites have to survive."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isobit.benchmark.models.bert import Bert
from isobit.benchmark.models.cifar_resnet import CifarResNet
from isobit.benchmark.models.vit import Vit


class Residual(nn.Module):
    """conv-bn-relu, then conv-bn plus the input, then relu; one projected shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.bn3 = nn.BatchNorm2d(16)
        self.shortcut = nn.Conv2d(8, 16, 1, stride=2)
        self.relu3 = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu1(self.bn1(self.conv1(x)))
        x = self.relu2(x + self.bn2(self.conv2(x)))
        x = self.relu3(self.bn3(self.conv3(x)) + self.shortcut(x))
        return self.linear(torch.flatten(self.pool(x), 1))


class Depthwise(nn.Module):
    """An inverted residual as in MobileNetV2: uneven padding, grouped convolution, ReLU6, an add without ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(3, 8, 3, stride=2, bias=False), nn.BatchNorm2d(8), nn.ReLU6()
        )
        self.expand = nn.Sequential(nn.Conv2d(8, 16, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6())
        self.depthwise = nn.Sequential(
            nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False), nn.BatchNorm2d(16), nn.ReLU6()
        )
        self.project = nn.Sequential(nn.Conv2d(16, 8, 1, bias=False), nn.BatchNorm2d(8))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(8, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.project(self.depthwise(self.expand(x)))
        return self.classifier(x.mean((2, 3)))


class Concat(nn.Module):
    """Two branches joined by concat, max-pooled with ceil_mode, as in SqueezeNet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.pool = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.narrow = nn.Conv2d(8, 4, 1)
        self.wide = nn.Conv2d(8, 6, 3, padding=1)
        self.head = nn.Conv2d(10, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.stem(x)))
        x = torch.cat([F.relu(self.narrow(x)), F.relu(self.wide(x))], 1)
        return F.adaptive_avg_pool2d(self.head(x), 1).flatten(1)


class Shared(nn.Module):
    """One convolution and one ReLU, each called twice; two linear layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.relu = nn.ReLU()
        self.first = nn.Linear(3, 3, bias=False)
        self.second = nn.Linear(3, 3)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.conv(self.relu(self.conv(x))))
        return self.second(self.first(x.mean((2, 3))))


class Mlp(nn.Module):
    """Linear, GELU and LayerNorm with a residual: one block of a transformer without attention."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(12)
        self.up = nn.Linear(12, 24)
        self.gelu = nn.GELU()
        self.down = nn.Linear(24, 12)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.down(self.gelu(self.up(self.norm(x))))
        return self.head(x)


class Functional(nn.Module):
    """No module is called: parameters of its own, `F.conv2d`, `F.batch_norm`, `F.linear`, operators, a reshape."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 3, 3, 3) * 0.3)
        self.gamma = nn.Parameter(torch.rand(6) + 0.5)
        self.beta = nn.Parameter(torch.randn(6) * 0.1)
        self.register_buffer("mean", torch.randn(6) * 0.1)
        self.register_buffer("variance", torch.rand(6) + 0.5)
        self.classes = nn.Parameter(torch.randn(5, 24) * 0.3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.weight, padding=1)
        x = F.relu(F.batch_norm(x, self.mean, self.variance, self.gamma, self.beta, training=False))
        x = F.avg_pool2d(x, 4)
        x = x * 0.5 + torch.sigmoid(x)
        return F.linear(x.reshape(x.shape[0], -1), self.classes)


class Convolution1d(nn.Module):
    """One dimension, dilation, an unfused activation, and a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 8, 3, padding=2, dilation=2)
        self.activation = nn.Hardswish()
        self.up = nn.ConvTranspose1d(8, 3, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.activation(self.conv(x)))


def small_networks() -> dict[str, tuple[nn.Module, tuple[Tensor, ...]]]:
    """Each network in eval mode with example inputs of batch 2; always the same weights and inputs.

    BN has random statistics and factors, so that folding it wrongly shows.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        image = torch.randn(2, 3, 8, 8)
        networks: dict[str, tuple[nn.Module, tuple[Tensor, ...]]] = {
            "residual": (Residual(), (image,)),
            "option_a": (CifarResNet(blocks=1, classes=5), (torch.randn(2, 3, 16, 16),)),
            "depthwise": (Depthwise(), (image,)),
            "concat": (Concat(), (image,)),
            "shared": (Shared(), (image,)),
            "mlp": (Mlp(), (torch.randn(2, 4, 12),)),
            "functional": (Functional(), (image,)),
            "convolution_1d": (Convolution1d(), (torch.randn(2, 4, 10),)),
            "vit": (Vit(image=8, patch=4, width=16, depth=2, heads=2, expansion=2, classes=5), (image,)),
            "bert": (
                Bert(vocabulary=30, width=16, depth=2, heads=2, hidden=32, positions=8, classes=5),
                (torch.randint(0, 30, (2, 6)), torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])),
            ),
        }
        for network, _ in networks.values():
            for module in network.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.running_mean.normal_(0, 0.2)
                    module.running_var.uniform_(0.5, 1.5)
                    nn.init.uniform_(module.weight, 0.5, 1.5)
                    nn.init.normal_(module.bias, 0, 0.2)
                if isinstance(network, (Vit, Bert)) and isinstance(module, nn.Linear):
                    nn.init.normal_(module.weight, 0, 0.3)  # so that attention is not flat
            network.eval()
    return networks
