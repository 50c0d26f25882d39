"""Scaled dot-product attention as a layer, so that its dropout follows train and eval."""

from typing import final

import torch.nn.functional as F
from torch import Tensor, nn


@final
class Attention(nn.Module):
    """softmax(q kᵀ · scale + mask) v, with dropout on the softmax in train mode.

    `scale` is 1/√d where None. Shapes: q (…, l, d), k (…, s, d), v (…, s, e) → (…, l, e).
    """

    def __init__(
        self, *, dropout: float = 0.0, is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False
    ) -> None:
        super().__init__()
        self.dropout, self.is_causal, self.scale, self.enable_gqa = dropout, is_causal, scale, enable_gqa

    def forward(self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """Attend."""
        return F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=attn_mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=self.is_causal,
            scale=self.scale,
            enable_gqa=self.enable_gqa,
        )

    def extra_repr(self) -> str:
        """The settings."""
        return f"dropout={self.dropout}, is_causal={self.is_causal}, scale={self.scale}, enable_gqa={self.enable_gqa}"
