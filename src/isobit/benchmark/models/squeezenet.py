"""SqueezeNet 1.1 (Iandola et al. 2016, arXiv:1602.07360; version 1.1 of the authors' repository)."""

from typing import final

import torch
from torch import Tensor, nn


@final
class Fire(nn.Module):
    """y = concat(relu(expand1x1(s)), relu(expand3x3(s))) with s = relu(squeeze(x)); figure 1 of the paper."""

    def __init__(self, width_in: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(width_in, squeezed, 1)
        self.squeeze_activation = nn.ReLU()
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand1x1_activation = nn.ReLU()
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)
        self.expand3x3_activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) -> (n, 2 · expanded, h, w)."""
        x = self.squeeze_activation(self.squeeze(x))
        wide = self.expand3x3_activation(self.expand3x3(x))
        return torch.cat([self.expand1x1_activation(self.expand1x1(x)), wide], 1)


@final
class SqueezeNet(nn.Module):
    """Version 1.1, with the keys of torchvision's `squeezenet1_1`.

    >>> SqueezeNet(classes=4).eval()(torch.zeros(2, 3, 64, 64)).shape
    torch.Size([2, 4])
    """

    def __init__(self, *, classes: int = 1000) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, 3, stride=2),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2, ceil_mode=True),
            Fire(64, 16, 64),
            Fire(128, 16, 64),
            nn.MaxPool2d(3, stride=2, ceil_mode=True),
            Fire(128, 32, 128),
            Fire(256, 32, 128),
            nn.MaxPool2d(3, stride=2, ceil_mode=True),
            Fire(256, 48, 192),
            Fire(384, 48, 192),
            Fire(384, 64, 256),
            Fire(512, 64, 256),
        )
        self.classifier = nn.Sequential(nn.Dropout(0.5), nn.Conv2d(512, classes, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                nn.init.kaiming_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(n, 3, 224, 224) normalised images -> (n, classes) logits."""
        return torch.flatten(self.classifier(self.features(x)), 1)


def squeezenet1_1() -> SqueezeNet:
    """SqueezeNet 1.1: 1.2 M parameters, no BN."""
    return SqueezeNet()
