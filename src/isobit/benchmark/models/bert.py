"""BERT, a classifier of token sequences (Devlin et al., NAACL 2019, arXiv:1810.04805)."""

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isobit.core.errors import SettingError


@final
class SelfAttention(nn.Module):
    """softmax(Q Kᵀ / √d + mask) V per head, with Q, K and V from three linear layers."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(n, tokens, width), mask (n, 1, 1, tokens) true where a token counts -> (n, tokens, width)."""
        query, key, value = (
            linear(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for linear in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.output(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


@final
class BertBlock(nn.Module):
    """norm(x + attention(x)), then norm(x + down(gelu(up(x)))): the norms come last, as in the first transformer."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.attention = SelfAttention(width, heads)
        self.attention_norm = nn.LayerNorm(width, eps=1e-12)
        self.up = nn.Linear(width, hidden)
        self.activation = nn.GELU()
        self.down = nn.Linear(hidden, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(n, tokens, width) -> the same shape."""
        x = self.attention_norm(x + self.attention(x, mask))
        return self.norm(x + self.down(self.activation(self.up(x))))  # type: ignore[no-any-return]


@final
class Bert(nn.Module):
    """Word and position embeddings, `depth` blocks, a tanh pooler on the first token, a linear classifier.

    One segment alone: the segment embedding of a single sentence is a constant that the positions absorb.

    >>> net = Bert(vocabulary=20, width=8, depth=1, heads=2, hidden=16, positions=6)
    >>> net(torch.zeros(2, 5, dtype=torch.long)).shape
    torch.Size([2, 2])
    """

    def __init__(
        self,
        *,
        vocabulary: int = 30522,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        hidden: int = 3072,
        positions: int = 512,
        classes: int = 2,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if width % heads:
            raise SettingError(f"a width of {width} is no whole number of {heads} heads")
        self.words = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(positions, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(BertBlock(width, heads, hidden) for _ in range(depth))
        self.pooler = nn.Linear(width, width)
        self.pooler_activation = nn.Tanh()
        self.classifier = nn.Linear(width, classes)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.trunc_normal_(module.weight, std=0.02)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """(n, tokens) int64 ids, and a mask of that shape, 1 where a token counts -> (n, classes) logits."""
        places = torch.arange(ids.shape[1], device=ids.device)
        x = self.dropout(self.norm(self.words(ids) + self.positions(places)))
        counts = None if mask is None else mask.bool()[:, None, None, :]
        for block in self.blocks:
            x = block(x, counts)
        return self.classifier(self.pooler_activation(self.pooler(x[:, 0])))  # type: ignore[no-any-return]


def bert_base() -> Bert:
    """BERT-base: 109 M parameters."""
    return Bert()


def bert_tiny() -> Bert:
    """BERT-tiny (Turc et al. 2019, arXiv:1908.08962): two blocks of width 128."""
    return Bert(width=128, depth=2, heads=2, hidden=512)
