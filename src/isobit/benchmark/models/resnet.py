"""ResNet-18, 34 and 50 for ImageNet (He et al., CVPR 2016, arXiv:1512.03385, table 1), with torchvision's keys.

The stride of a bottleneck sits in its 3x3 convolution, as in torchvision ("v1.5"), not in the first 1x1 of the paper.
"""

from typing import final

import torch
from torch import Tensor, nn


@final
class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; the one ReLU module serves both places, as in torchvision."""

    expansion = 1

    def __init__(self, width_in: int, width: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _downsample(width_in, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) -> (n, width, h / stride, w / stride)."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))  # type: ignore[no-any-return]


@final
class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions, the last four times as wide, and a shortcut."""

    expansion = 4

    def __init__(self, width_in: int, width: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width * self.expansion)
        self.relu = nn.ReLU()
        self.downsample = _downsample(width_in, width * self.expansion, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) -> (n, 4 · width, h / stride, w / stride)."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))  # type: ignore[no-any-return]


Block = type[BasicBlock] | type[Bottleneck]


@final
class ResNet(nn.Module):
    """Four stages of `blocks[i]` blocks and 64, 128, 256, 512 channels (times the block's expansion).

    `zero_init_residual` starts the last BN of each block at gamma = 0 (Goyal et al. 2017, arXiv:1706.02677, 5.1).

    >>> ResNet(BasicBlock, blocks=(1, 1, 1, 1), classes=4).eval()(torch.zeros(2, 3, 64, 64)).shape
    torch.Size([2, 4])
    """

    def __init__(
        self, block: Block, *, blocks: tuple[int, int, int, int], classes: int = 1000, zero_init_residual: bool = False
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        wide = block.expansion
        self.layer1 = _stage(block, 64, 64, blocks[0], stride=1)
        self.layer2 = _stage(block, 64 * wide, 128, blocks[1], stride=2)
        self.layer3 = _stage(block, 128 * wide, 256, blocks[2], stride=2)
        self.layer4 = _stage(block, 256 * wide, 512, blocks[3], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(512 * wide, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if zero_init_residual and isinstance(module, (BasicBlock, Bottleneck)):
                last = module.bn2 if isinstance(module, BasicBlock) else module.bn3
                nn.init.zeros_(last.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(n, 3, 224, 224) normalised images -> (n, classes) logits."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))  # type: ignore[no-any-return]


def _downsample(width_in: int, width: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and width_in == width:
        return None
    return nn.Sequential(nn.Conv2d(width_in, width, 1, stride=stride, bias=False), nn.BatchNorm2d(width))


def _stage(block: Block, width_in: int, width: int, blocks: int, *, stride: int) -> nn.Sequential:
    rest = (block(width * block.expansion, width, stride=1) for _ in range(blocks - 1))
    return nn.Sequential(block(width_in, width, stride=stride), *rest)


def resnet18() -> ResNet:
    """ResNet-18: 11.7 M parameters."""
    return ResNet(BasicBlock, blocks=(2, 2, 2, 2))


def resnet34() -> ResNet:
    """ResNet-34: 21.8 M parameters."""
    return ResNet(BasicBlock, blocks=(3, 4, 6, 3))


def resnet50() -> ResNet:
    """ResNet-50: 25.6 M parameters."""
    return ResNet(Bottleneck, blocks=(3, 4, 6, 3))
