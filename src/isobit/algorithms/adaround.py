"""AdaRound: up or down is learned for each weight, layer by layer (Nagel et al., ICML 2020, arXiv:2004.10568)."""

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
class AdaRound:
    """Settings of AdaRound: argmin over V of E ||f(W x) - f(Ŵ x̂)||² + λ Σ 1 - |2 h(V) - 1|^β (equations 21 and 25).

    f is the activation behind the layer, x̂ comes from the quantized layers before. The paper takes 10,000 iterations
    at Adam's rate 1e-3; these few need a larger one. Steps of activations stay as calibrated.
    """

    unit: ClassVar[Unit] = "layer"
    iterations: int = 400
    batch_size: int = 32
    learning_rate: float = 1e-2
    regularization: float = 0.01

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
