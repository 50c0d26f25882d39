"""MobileNetV2 (Sandler et al., CVPR 2018, arXiv:1801.04381), with or without BN, padded as TensorFlow or PyTorch do."""

from collections import OrderedDict
from typing import Literal, final

import torch
from torch import Tensor, nn

Padding = Literal["tensorflow", "symmetric"]

# Table 2 of the paper: expansion t, channels c, repeats n, stride s of the first repeat.
_STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


@final
class InvertedResidual(nn.Module):
    """Expand by 1x1, filter each channel by 3x3, project by 1x1 without activation; add the input where shapes fit."""

    def __init__(
        self, width_in: int, width: int, *, stride: int, expansion: int, batch_norm: bool, padding: Padding
    ) -> None:
        super().__init__()
        inner = width_in * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers.append(_conv_relu6(width_in, inner, kernel=1, batch_norm=batch_norm))
        layers.append(_conv_relu6(inner, inner, stride=stride, groups=inner, batch_norm=batch_norm, padding=padding))
        layers.append(nn.Conv2d(inner, width, 1, bias=not batch_norm))
        if batch_norm:
            layers.append(nn.BatchNorm2d(width))
        self.conv = nn.Sequential(*layers)
        self.residual = stride == 1 and width_in == width

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) -> (n, width, h / stride, w / stride)."""
        y: Tensor = self.conv(x)
        return x + y if self.residual else y


@final
class MobileNetV2(nn.Module):
    """Width 1.0; with `batch_norm` the keys of torchvision's `mobilenet_v2`, else those of its convolutions, folded.

    `padding="tensorflow"` pads 0 left and top, 1 right and bottom at stride 2, as SAME does for even sizes (224);
    `"symmetric"` pads 1 on each side, as torchvision does. Weights of one lose some eight points under the other.

    >>> MobileNetV2(classes=4).eval()(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 4])
    """

    def __init__(self, *, classes: int = 1000, batch_norm: bool = True, padding: Padding = "tensorflow") -> None:
        super().__init__()
        features: list[nn.Module] = [_conv_relu6(3, 32, stride=2, batch_norm=batch_norm, padding=padding)]
        width_in = 32
        for expansion, width, repeats, first_stride in _STAGES:
            for repeat in range(repeats):
                stride = first_stride if repeat == 0 else 1
                features.append(
                    InvertedResidual(
                        width_in, width, stride=stride, expansion=expansion, batch_norm=batch_norm, padding=padding
                    )
                )
                width_in = width
        features.append(_conv_relu6(width_in, 1280, kernel=1, batch_norm=batch_norm))
        self.features = nn.Sequential(*features)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, classes))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def forward(self, x: Tensor) -> Tensor:
        """(n, 3, 224, 224) normalised images -> (n, classes) logits."""
        x = self.pool(self.features(x))
        return self.classifier(torch.flatten(x, 1))  # type: ignore[no-any-return]


def _conv_relu6(
    width_in: int,
    width: int,
    *,
    kernel: int = 3,
    stride: int = 1,
    groups: int = 1,
    batch_norm: bool,
    padding: Padding = "symmetric",
) -> nn.Sequential:
    uneven = padding == "tensorflow" and stride == 2
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if uneven:  # named, so that the convolution keeps its published key, "0"
        layers["pad"] = nn.ZeroPad2d((0, 1, 0, 1))
    layers["0"] = nn.Conv2d(
        width_in,
        width,
        kernel,
        stride=stride,
        padding=0 if uneven else kernel // 2,
        groups=groups,
        bias=not batch_norm,
    )
    if batch_norm:
        layers["1"] = nn.BatchNorm2d(width)
    layers["2" if batch_norm else "1"] = nn.ReLU6()
    return nn.Sequential(layers)


def mobilenet_v2_folded() -> MobileNetV2:
    """TensorFlow's padding, BN folded: loads `mobilenet_v2_1.0_224_tf_folded`."""
    return MobileNetV2(batch_norm=False)


def mobilenet_v2_symmetric() -> MobileNetV2:
    """torchvision's network: symmetric padding, with BN."""
    return MobileNetV2(padding="symmetric")
