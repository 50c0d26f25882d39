"""QDrop: blocks learn while activations are quantized at random (Wei et al., ICLR 2022, arXiv:2203.05740)."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar, final

from torch import fx

from isobit.algorithms.reconstruction import Reconstruction, reconstruct
from isobit.core.batches import Data
from isobit.core.progress import Progress, silent
from isobit.core.records import SegmentRecord
from isobit.graph.segments import Unit


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class QDrop:
    """Settings of QDrop: as BRECQ, but each element of each activation is quantized with probability `quantized`.

    Else it passes in float (equation 8), and the block's input is mixed alike from the quantized and the float network.
    Weights and the steps of activations learn together. The published code's option for it, `drop_prob`, is this same
    probability to stay quantized.
    """

    unit: ClassVar[Unit] = "block"
    iterations: int = 400
    batch_size: int = 32
    learning_rate: float = 1e-2
    step_rate: float = 1e-3
    regularization: float = 0.01
    quantized: float = 0.5

    def __post_init__(self) -> None:
        self.reconstruction(seed=0)  # says what cannot be

    def apply(
        self,
        model: fx.GraphModule,
        data: Data,
        *,
        seed: int = 0,
        checkpoint: Path | None = None,
        progress: Progress = silent,
    ) -> tuple[SegmentRecord, ...]:
        """See `isobit.algorithms.reconstruction.reconstruct`."""
        return reconstruct(model, data, self.reconstruction(seed=seed), checkpoint=checkpoint, progress=progress)

    def reconstruction(self, *, seed: int) -> Reconstruction:
        """What the shared loop is told."""
        return Reconstruction(unit=self.unit, seed=seed, **asdict(self))
