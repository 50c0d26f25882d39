"""The interface of what makes calibration data for a network from nothing but the network."""

from typing import Protocol

from torch import Tensor, nn

from isobit.core.progress import Progress, silent


class Synthesizes(Protocol):
    """Settings of a synthesis."""

    def synthesize(
        self,
        net: nn.Module,
        example: tuple[Tensor, ...],
        *,
        samples: int,
        seed: int = 0,
        progress: Progress = silent,
    ) -> list[Tensor]:
        """Batches of `samples` inputs in all, the same for the same seed. The network stays as it was."""
