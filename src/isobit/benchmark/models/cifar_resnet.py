"""CIFAR-10 ResNets of depth 6n + 2 (He et al., CVPR 2016, arXiv:1512.03385, section 4.2)."""

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@final
class OptionA(nn.Module):
    """The shortcut without weights: every second pixel, then zero channels, half of them on each side.

    (n, c, h, w) -> (n, 2c, h/2, w/2) where the new width is 2c; a quarter of it is added on each side.
    """

    def __init__(self, added: int) -> None:
        super().__init__()
        self.added = added

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.added // 2, self.added - self.added // 2))


@final
class CifarBlock(nn.Module):
    """y = relu(bn2(conv2(relu(bn1(conv1(x))))) + shortcut(x))."""

    def __init__(self, width_in: int, width: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = nn.Identity() if stride == 1 else OptionA(width - width_in)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) -> (n, width, h / stride, w / stride)."""
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu2(y + self.shortcut(x))  # type: ignore[no-any-return]


@final
class CifarResNet(nn.Module):
    """Three stages of `blocks` blocks and 16, 32 and 64 channels; depth 6 · blocks + 2.

    >>> CifarResNet(blocks=3).eval()(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """

    def __init__(self, *, blocks: int, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.layer1 = _stage(16, 16, blocks, stride=1)
        self.layer2 = _stage(16, 32, blocks, stride=2)
        self.layer3 = _stage(32, 64, blocks, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(64, classes)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(n, 3, 32, 32) normalised images -> (n, classes) logits."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(torch.flatten(self.pool(x), 1))  # type: ignore[no-any-return]


def _stage(width_in: int, width: int, blocks: int, *, stride: int) -> nn.Sequential:
    first = CifarBlock(width_in, width, stride=stride)
    return nn.Sequential(first, *(CifarBlock(width, width, stride=1) for _ in range(blocks - 1)))


def cifar10_resnet20() -> CifarResNet:
    """ResNet-20: 0.27 M parameters."""
    return CifarResNet(blocks=3)


def cifar10_resnet32() -> CifarResNet:
    """ResNet-32: 0.46 M parameters."""
    return CifarResNet(blocks=5)


def cifar10_resnet56() -> CifarResNet:
    """ResNet-56: 0.85 M parameters."""
    return CifarResNet(blocks=9)
