"""ZeroQ: images distilled from batch norm (Cai et al., CVPR 2020, arXiv:2001.00281)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from isobit.algorithms.batch_statistics import frozen_copy, watched
from isobit.algorithms.input_range import InputRange, check_range, from_normal, only_input
from isobit.core.progress import Progress, silent


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class ZeroQ:
    """Settings of the distillation. The paper takes 500 iterations of Adam at 0.5; the rate falls where nothing is won.

    Statistics are those of a whole batch, as in the paper; its public code takes each image's own.
    """

    iterations: int = 200
    batch_size: int = 32
    learning_rate: float = 0.5
    input_range: InputRange = None

    def synthesize(
        self,
        net: nn.Module,
        example: tuple[Tensor, ...],
        *,
        samples: int,
        seed: int = 0,
        progress: Progress = silent,
    ) -> list[Tensor]:
        """Batches of distilled inputs. Raises UnsupportedError without batch norm, or for inputs that are no floats."""
        x = only_input(example)
        check_range(self.input_range, int(x.shape[1]))
        frozen = frozen_copy(net, method="zeroq")
        generator = torch.Generator().manual_seed(seed)
        sizes = [min(self.batch_size, samples - start) for start in range(0, samples, self.batch_size)]
        batches = []
        for number, size in enumerate(sizes):
            start = torch.randn(size, *x.shape[1:], generator=generator)

            def tell(step: int, number: int = number) -> None:
                progress("distilling inputs", number * self.iterations + step, len(sizes) * self.iterations)

            batches.append(self._distill(frozen, start.to(x.device), tell))
        return batches

    def _distill(self, net: nn.Module, z: Tensor, tell: Callable[[int], None]) -> Tensor:
        z.requires_grad_(True)
        optimizer = torch.optim.Adam([z], lr=self.learning_rate)
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=self.iterations // 5, min_lr=1e-4)
        with watched(net) as norms:
            for step in range(self.iterations):
                net(from_normal(z, self.input_range))
                loss = distance(norms) + distance([_off_standard(z)])
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step(float(loss.detach()))
                tell(step + 1)
        return from_normal(z.detach(), self.input_range)


def distance(found: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Σ over layers of ‖μ̃ - μ‖² + ‖σ̃ - σ‖² (equation 3)."""
    return torch.stack([mean.square().sum() + std.square().sum() for mean, std in found]).sum()


def _off_standard(z: Tensor) -> tuple[Tensor, Tensor]:
    """The input's own term: each channel has mean 0 and deviation 1."""
    var, mean = torch.var_mean(z, [d for d in range(z.dim()) if d != 1], correction=0)
    return mean, (var + 1e-12).sqrt() - 1
