"""The example inputs of a capture, at any batch size."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from isobit.core.errors import CaptureError


@dataclass(frozen=True, kw_only=True, slots=True)
class Samples:
    """Positional and named inputs. `batch` is the length of dimension 0 of the first tensor; tensors of that length
    hold one entry per sample, the others belong to all samples."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    batch: int

    def of(self, size: int) -> "Samples":
        """The same inputs with `size` samples: the first ones, repeated where there are too few."""
        index = torch.arange(size) % max(self.batch, 1)

        def resize(x: Any) -> Any:
            return x[index.to(x.device)].contiguous() if self._batched(x) else x

        return Samples(args=pytree.tree_map(resize, self.args), kwargs=pytree.tree_map(resize, self.kwargs), batch=size)

    def varied(self) -> "Samples":
        """The same inputs, with noise where a float tensor is constant: zeros would hide a wrong graph."""
        generator = torch.Generator().manual_seed(0)

        def vary(x: Any) -> Any:
            if (
                not isinstance(x, Tensor)
                or not x.is_floating_point()
                or x.numel() < 2
                or bool((x != x.flatten()[0]).any())
            ):
                return x
            return torch.randn(x.shape, generator=generator).to(x)

        return Samples(
            args=pytree.tree_map(vary, self.args), kwargs=pytree.tree_map(vary, self.kwargs), batch=self.batch
        )

    def batched(self) -> list[Tensor]:
        """The tensors that hold one entry per sample."""
        return [x for x in pytree.tree_leaves((self.args, self.kwargs)) if self._batched(x)]

    def shapes(self) -> str:
        """The shapes, for an error text."""
        tensors = [x for x in pytree.tree_leaves((self.args, self.kwargs)) if isinstance(x, Tensor)]
        return ", ".join(f"{tuple(x.shape)} {str(x.dtype).removeprefix('torch.')}" for x in tensors)

    def _batched(self, x: Any) -> bool:
        return isinstance(x, Tensor) and x.dim() > 0 and x.shape[0] == self.batch


def samples_of(example: Any, kwargs: dict[str, Any] | None) -> Samples:
    """Understand `example`: a tensor, or a tuple of the positional inputs; raises CaptureError without any tensor."""
    args = tuple(example) if isinstance(example, (tuple, list)) else (example,)
    named = dict(kwargs or {})
    tensors = [x for x in pytree.tree_leaves((args, named)) if isinstance(x, Tensor)]
    sized = [x for x in tensors if x.dim() > 0]
    if not sized:
        raise CaptureError(
            "the example holds no tensor with a batch dimension: give capture(model, example) the inputs of forward, "
            "such as torch.zeros(1, 3, 224, 224)"
        )
    if any(x.numel() == 0 for x in sized):
        raise CaptureError(f"the example is empty: its shapes are {', '.join(str(tuple(x.shape)) for x in sized)}")
    return Samples(args=args, kwargs=named, batch=int(sized[0].shape[0]))
