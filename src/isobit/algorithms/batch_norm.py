"""Batch norm in training: frozen from a step on, and recalibrated to the network as it is deployed."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice

import torch
from torch import Tensor, nn

from isobit.core.batches import Data
from isobit.core.batches import batches as checked
from isobit.core.distributed import mean_over_ranks
from isobit.core.errors import CalibrationError, SettingError
from isobit.graph.folding import is_folded

BatchNorm = nn.modules.batchnorm._BatchNorm


@torch.no_grad()
def recalibrate_batch_norm(model: nn.Module, data: Data, *, batches: int | None = None) -> int:
    """Give every batch norm the statistics of `data`, in place, and return how many got some.

    Mean and unbiased variance are averages over the first `batches` batches (all for None) and all processes, each
    batch with the weight of its size. Meanwhile each norm normalizes with the batch's own, and the rest of the model is
    in eval mode: quantizers compute what is deployed, which for some, as SLB (arXiv:2009.08695), is not what training
    computed. All else, modes and `num_batches_tracked` included, stays. Do this before `finish` merges batch norms.

    A folded layer counts the output of its quantized weight divided by γ / σ, as its folding strategy 4 does. The new
    σ then scales the weight in front of its quantizer, which keeps its own scale: σ may change a little, not a lot.

    Raises SettingError for less than one batch, CalibrationError for unfit data and one value per channel.
    """
    if batches is not None and batches < 1:
        raise SettingError(f"batches has to be at least 1, got {batches}")
    norms = batch_norms(model)
    if not norms:
        return 0
    found = {name: _Average(name) for name in norms}
    with _normalizing_by_batch(model, norms):
        hooks = [norm.register_forward_pre_hook(found[name]) for name, norm in norms.items()]
        try:
            device = next(model.parameters()).device
            for batch in islice(checked(data, name="recalibration data"), batches):
                model(*(x.to(device) for x in batch.inputs))
        finally:
            for hook in hooks:
                hook.remove()
    seen = [name for name in norms if found[name].count]
    for name in seen:
        found[name].write(norms[name])
    return len(seen)


def batch_norms(model: nn.Module) -> dict[str, nn.Module]:
    """The batch norms that have running statistics, those of folded layers included, by name."""
    return {name: norm for name, norm in model.named_modules() if _has_statistics(norm)}


def freeze_batch_norm(model: nn.Module, *, affine: bool = False) -> int:
    """From now on every batch norm normalizes with its running statistics, which stay as they are; gives how many do.

    A layer that trains folded then computes strategy 1, whatever its own is. γ and β go on to learn, unless `affine`.
    `model.train()` undoes it, but for `affine`.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).train()
    >>> freeze_batch_norm(net), net[1].training, net[0].training
    (1, False, True)
    """
    norms = batch_norms(model).values()
    for norm in norms:
        norm.eval()
        for parameter in norm.parameters() if affine else ():
            parameter.requires_grad_(False)
            parameter.grad = None  # what momentum still holds would move it
    return len(norms)


class _Average:
    """Averages of what one batch norm gets; a hook in front of it."""

    def __init__(self, name: str) -> None:
        self.name, self.count = name, 0
        self._mean = self._var = torch.zeros(())

    def __call__(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Take in one batch. Shapes: (n, channels, …)."""
        x = inputs[0].double()
        count = x.numel() // x.shape[1]
        if count < 2:
            raise CalibrationError(
                f"{self.name}: a batch norm needs more than one value per channel, got {tuple(x.shape)}: "
                "give larger batches"
            )
        var, mean = torch.var_mean(x, [d for d in range(x.dim()) if d != 1])
        self.count += count
        self._mean = self._mean.to(mean) + (mean - self._mean.to(mean)) * count / self.count
        self._var = self._var.to(var) + (var - self._var.to(var)) * count / self.count

    def write(self, norm: nn.Module) -> None:
        """Set the running statistics."""
        assert isinstance(norm.running_mean, Tensor) and isinstance(norm.running_var, Tensor)
        norm.running_mean.copy_(mean_over_ranks(self._mean)[0])
        norm.running_var.copy_(mean_over_ranks(self._var)[0])


def _has_statistics(module: nn.Module) -> bool:
    return isinstance(module, BatchNorm) and module.running_mean is not None


@contextmanager
def _normalizing_by_batch(model: nn.Module, norms: dict[str, nn.Module]) -> Iterator[None]:
    """Norms in training mode with their running statistics as they are; folded layers pass through their norm."""
    modes = {module: module.training for module in model.modules()}
    folded = [layer for layer in model.modules() if is_folded(layer)]
    strategies = [(layer.strategy, layer.synchronized) for layer in folded]
    rates = {name: (norm.momentum, norm.num_batches_tracked.clone()) for name, norm in norms.items()}  # type: ignore[operator]
    model.eval()
    for layer in folded:
        layer.__dict__ |= {"strategy": 4, "synchronized": False}
    for norm in norms.values():
        norm.train()
        norm.momentum = 0.0  # type: ignore[assignment]
    try:
        yield
    finally:
        for name, (momentum, tracked) in rates.items():
            norms[name].momentum = momentum
            norms[name].num_batches_tracked.copy_(tracked)  # type: ignore[operator]
        for layer, (strategy, synchronized) in zip(folded, strategies, strict=True):
            layer.__dict__ |= {"strategy": strategy, "synchronized": synchronized}
        for module, training in modes.items():
            module.training = training
