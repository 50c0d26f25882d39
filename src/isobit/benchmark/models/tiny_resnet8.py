"""ResNet-8 of MLPerf Tiny (Banbury et al., NeurIPS Datasets 2021, arXiv:2106.07597), as trained in Keras."""

from typing import final

import torch
from torch import Tensor, nn


@final
class TinyBlock(nn.Module):
    """y = relu(bn2(conv2(relu(bn1(conv1(x))))) + shortcut(x)), every convolution with a bias.

    TensorFlow's SAME padding: at stride 2, on an even size, 0 left and top and 1 right and bottom.
    """

    def __init__(self, width_in: int, width: int, *, stride: int) -> None:
        super().__init__()
        self.pad = nn.Identity() if stride == 1 else nn.ZeroPad2d((0, 1, 0, 1))
        self.conv1 = nn.Conv2d(width_in, width, 3, stride=stride, padding=1 if stride == 1 else 0)
        self.bn1 = nn.BatchNorm2d(width, eps=1e-3)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(width, eps=1e-3)
        self.shortcut = nn.Identity() if stride == 1 else nn.Conv2d(width_in, width, 1, stride=stride)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) -> (n, width, h / stride, w / stride), h and w even."""
        y = self.relu1(self.bn1(self.conv1(self.pad(x))))
        y = self.bn2(self.conv2(y))
        return self.relu2(y + self.shortcut(x))  # type: ignore[no-any-return]


@final
class TinyResNet8(nn.Module):
    """Three blocks of 16, 32 and 64 channels, 78 k parameters; the input is pixels 0..255 as they are.

    >>> TinyResNet8().eval()(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """

    def __init__(self, *, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(16, eps=1e-3)
        self.relu = nn.ReLU()
        self.layer1 = TinyBlock(16, 16, stride=1)
        self.layer2 = TinyBlock(16, 32, stride=2)
        self.layer3 = TinyBlock(32, 64, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(n, 3, 32, 32) pixels 0..255 -> (n, classes) logits."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(torch.flatten(self.pool(x), 1))  # type: ignore[no-any-return]
