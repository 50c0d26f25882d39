"""Train the digits network from nothing in seconds: the float network of the demo."""

import torch
import torch.nn.functional as F
from torch import Tensor

from isobit.analysis.accuracy import accuracy
from isobit.benchmark.data.digits import read_digits
from isobit.benchmark.models.digits import DigitsResNet
from isobit.core.errors import SettingError
from isobit.core.progress import Progress, silent


def train_digits(seed: int = 0, *, epochs: int = 20, progress: Progress = silent) -> tuple[DigitsResNet, float]:
    """Train on the 1,347 training digits; give the network in eval mode and its accuracy on the 450 others.

    SGD with Nesterov momentum 0.9, weight decay 5e-4, a one-cycle learning rate, label smoothing 0.1, and each image
    shifted by up to one pixel. The same seed gives the same weights, bit for bit, on the same machine with the same
    number of threads; the global random state is left as it was. Raises MissingExtraError without scikit-learn.
    """
    if epochs < 1:
        raise SettingError(f"epochs has to be at least 1, got {epochs}")
    [(x, y)] = read_digits("train").batched(10_000)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = DigitsResNet()
    size = 64
    steps = -(-len(x) // size)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=epochs * steps)
    model.train()
    for epoch in range(epochs):
        for chosen in torch.split(torch.randperm(len(x), generator=generator), size):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(_shifted(x[chosen], generator)), y[chosen], label_smoothing=0.1)
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
        progress("training on 1,347 digits", epoch + 1, epochs)
    model.eval()
    right, total = accuracy(model, read_digits("test"))
    return model, right / total


def _shifted(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each image (n, 1, h, w) moved by -1, 0 or 1 pixel in each direction; zeros come in."""
    height, width = x.shape[2:]
    windows = F.pad(x, (1, 1, 1, 1)).unfold(2, height, 1).unfold(3, width, 1)  # (n, 1, 3, 3, h, w)
    down, right = torch.randint(0, 3, (2, len(x)), generator=generator)
    return windows[torch.arange(len(x)), :, down, right]
