"""Scaled dot-product attention as a layer, so that its dropout follows train and eval; and the middle part of one."""

from typing import final

import torch
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


@final
class AttentionWeights(nn.Module):
    """softmax(scores · scale + mask) along the last axis: what attention does between its two products.

    Keys that a mask leaves out weigh 0, also where it leaves out all. Shapes: scores (…, l, s), mask the same or one
    that broadcasts: true where a key counts, or added.
    """

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, scores: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """Weigh."""
        scores = scores * self.scale
        if attn_mask is None:
            return scores.softmax(-1)
        if attn_mask.dtype == torch.bool:
            weights = torch.where(attn_mask, scores, -torch.inf).softmax(-1)
            return torch.where(attn_mask, weights, 0.0)
        hidden = attn_mask == -torch.inf
        weights = torch.where(hidden, -torch.inf, scores + attn_mask).softmax(-1)  # no gradient of what is hidden
        return torch.where(hidden, 0.0, weights)

    def extra_repr(self) -> str:
        """The factor."""
        return f"scale={self.scale:.6g}"
