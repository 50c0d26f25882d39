"""Top-1 accuracy."""

import torch
from torch import nn

from isobit.core.batches import Data, batches
from isobit.core.errors import CalibrationError
from isobit.core.memory import freed_memory_stays


@freed_memory_stays()
def accuracy(model: nn.Module, data: Data) -> tuple[int, int]:
    """Count the samples whose largest logit is the label's: (right, total).

    Logits are (n, classes), labels (n,). The model runs in eval mode without gradients; afterwards every module is
    back in the mode it had. Raises CalibrationError for data without labels.

    >>> accuracy(nn.Identity(), [(torch.eye(3), torch.tensor([0, 1, 1]))])
    (2, 3)
    """
    modes = [(module, module.training) for module in model.modules()]
    right = total = 0
    try:
        model.eval()
        with torch.inference_mode():
            for batch in batches(data, name="evaluation data"):
                if batch.labels is None:
                    raise CalibrationError("the evaluation data has no labels: give batches (x, labels)")
                predicted = model(*batch.inputs).argmax(dim=1)
                if predicted.shape != batch.labels.shape:
                    raise CalibrationError(
                        f"the network predicts classes of shape {tuple(predicted.shape)} for labels of shape "
                        f"{tuple(batch.labels.shape)}: top-1 needs (n, classes) logits and (n,) labels"
                    )
                right += int((predicted == batch.labels).sum())
                total += batch.size
    finally:
        for module, mode in modes:
            module.training = mode
    return right, total
