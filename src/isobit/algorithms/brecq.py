"""BRECQ: rounding is learned block by block (Li et al., ICLR 2021, arXiv:2102.05426)."""

from dataclasses import asdict, dataclass
from typing import ClassVar, final

from isobit.algorithms.reconstruction import Reconstruction, Weighting
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

    def reconstruction(self, *, seed: int) -> Reconstruction:
        """What the shared loop is told."""
        return Reconstruction(unit=self.unit, seed=seed, **asdict(self))
