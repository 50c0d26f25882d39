"""A ReLU with a cap for each channel: what a ReLU6 becomes when the channels in front of it are scaled."""

from typing import final

import torch
from torch import Tensor, nn


@final
class CappedReLU(nn.Module):
    """y = min(max(x, 0), cap), one cap for each channel of (n, channels, …).

    >>> CappedReLU(torch.tensor([1.0, 2.0]))(torch.tensor([[3.0, 3.0], [-1.0, 0.5]])).tolist()
    [[1.0, 2.0], [0.0, 0.5]]
    """

    cap: Tensor

    def __init__(self, cap: Tensor) -> None:
        super().__init__()
        self.register_buffer("cap", cap.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: (n, channels, …)."""
        return torch.minimum(x.clamp(min=0), self.cap.reshape(-1, *[1] * (x.dim() - 2)))

    def extra_repr(self) -> str:
        """The caps in words."""
        return f"{self.cap.numel()} channels, caps {float(self.cap.min()):.3g} to {float(self.cap.max()):.3g}"
