"""Batch-norm folding for training: layer and batch norm become one that trains as the merged layer will run."""

from dataclasses import dataclass
from typing import final

from torch import fx, nn

from isobit.core.errors import SettingError
from isobit.graph.folding import STRATEGIES, Strategy, fold_in_training
from isobit.graph.passes.batch_norms import BatchNorm, take_batch_norms
from isobit.graph.passes.protocol import PassReport
from isobit.graph.slots import weight_slot


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class FoldBatchNormInTraining:
    """Fold by one of the strategies 1 to 4 of `isobit.graph.folding`.

    `synchronized`: statistics of strategies 2 to 4 are those of all processes; False for each its own (4*).
    """

    strategy: Strategy = 4
    synchronized: bool = True
    name: str = "fold_bn_in_training"
    requires: str = "a model with quantizers"
    ensures: str = "the output in eval mode is that of the network with batch norm folded; state keys stay"

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES[2:]:
            raise SettingError(f"batch norm is folded in training by strategy 1, 2, 3 or 4, not {self.strategy!r}")

    def apply(self, model: fx.GraphModule) -> PassReport:
        """Fold in place; a batch norm that cannot be folded stays and is named."""

        def take(name: str, layer: nn.Module, norm: BatchNorm) -> str:
            if weight_slot(layer) is None:
                return f"{name} is not quantized"
            fold_in_training(layer, norm, self.strategy, synchronized=self.synchronized)
            return ""

        return take_batch_norms(model, take)
