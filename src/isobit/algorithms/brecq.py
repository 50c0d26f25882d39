"""BRECQ: rounding is learned block by block (Li et al., ICLR 2021, arXiv:2102.05426)."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar, final

from torch import fx

from isobit.algorithms.reconstruction import Reconstruction, Weighting, reconstruct
from isobit.core.batches import Data
from isobit.core.progress import Progress, silent
from isobit.core.records import SegmentRecord
from isobit.graph.segments import Unit


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Brecq:
    """Settings of BRECQ: AdaRound's rounding and λ, the error at the end of each residual block.

    `weighting = "fisher"` weighs each element by the square of the task loss's gradient to it (equation 10); the
    published code's own default is none. `step_rate` above 0 learns the steps of activations meanwhile. The paper takes
    20,000 iterations at Adam's rate 1e-3; these few need a larger one.
    """

    unit: ClassVar[Unit] = "block"
    iterations: int = 400
    batch_size: int = 32
    learning_rate: float = 1e-2
    step_rate: float = 0.0
    regularization: float = 0.01
    weighting: Weighting = "none"

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
