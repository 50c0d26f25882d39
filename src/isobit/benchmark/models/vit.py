"""ViT: images as sequences of patches (Dosovitskiy et al., ICLR 2021, arXiv:2010.11929)."""

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isobit.core.errors import SettingError


@final
class Attention(nn.Module):
    """softmax(Q Kᵀ / √d) V per head, with Q, K and V from one linear layer; equations 5 to 8 of the paper."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(n, tokens, width) -> the same shape."""
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.proj(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


@final
class VitBlock(nn.Module):
    """x + attention(norm1(x)), then x + fc2(gelu(fc1(norm2(x)))): equations 2 and 3."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.fc1 = nn.Linear(width, hidden)
        self.activation = nn.GELU()
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(n, tokens, width) -> the same shape."""
        x = x + self.attention(self.norm1(x))
        return x + self.fc2(self.activation(self.fc1(self.norm2(x))))  # type: ignore[no-any-return]


@final
class Vit(nn.Module):
    """Patches, a class token, learned positions, `depth` pre-norm blocks, a linear head on the class token.

    Raises SettingError where the image is no whole number of patches, or the width of heads.

    >>> Vit(image=8, patch=4, width=8, depth=1, heads=2, classes=4).eval()(torch.zeros(2, 3, 8, 8)).shape
    torch.Size([2, 4])
    """

    def __init__(
        self,
        *,
        image: int = 224,
        patch: int = 16,
        channels: int = 3,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        expansion: int = 4,
        classes: int = 1000,
    ) -> None:
        super().__init__()
        if image % patch:
            raise SettingError(f"an image of {image} pixels is no whole number of patches of {patch}")
        if width % heads:
            raise SettingError(f"a width of {width} is no whole number of {heads} heads")
        self.patches = nn.Conv2d(channels, width, patch, stride=patch)
        self.class_token = nn.Parameter(torch.empty(1, 1, width))
        self.position = nn.Parameter(torch.empty(1, (image // patch) ** 2 + 1, width))
        self.blocks = nn.Sequential(*(VitBlock(width, heads, width * expansion) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, classes)
        for parameter in (self.class_token, self.position):
            nn.init.trunc_normal_(parameter, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels, image, image) -> (n, classes) logits: equations 1 and 4."""
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(x.shape[0], -1, -1), tokens], dim=1) + self.position
        return self.head(self.norm(self.blocks(tokens))[:, 0])  # type: ignore[no-any-return]


def vit_tiny() -> Vit:
    """ViT-Ti/16: 5.7 M parameters."""
    return Vit(width=192, heads=3)


def vit_b16() -> Vit:
    """ViT-B/16: 86.6 M parameters."""
    return Vit()
